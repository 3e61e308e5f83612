import sys

try:
    from launch.cli import app
except ModuleNotFoundError as error:
    sys.exit(
        f"{error.name} is not installed in this Python ({sys.executable}). Activate the environment of the project "
        "(`source .venv/bin/activate`, or `conda activate NAME`), or install it with `pip install -e .`"
    )

app()
