from launch.cli import app

app()
