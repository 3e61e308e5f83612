"""Install with `pip install -e .`: `jobs` and `launch` then import from anywhere too; a wheel holds `distill` only."""

from setuptools import find_packages, setup

setup(
    name="distill-jobs",
    version="0.1.0",
    description="Distributed training jobs that distil large summarization and translation models into small ones",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["distill", "distill.*"]),
    package_dir={"": "."},
    install_requires=[
        "torch>=2.13",
        "transformers>=5.23",
        "deepspeed>=0.19.8",
        "datasets>=5.2",
        "submitit>=1.5.4",
        "rouge-score>=0.1.2",
        "sentencepiece>=0.2.3",
        "sacremoses>=0.2",  # Marian's tokenizer normalizes punctuation with it, and goes on without where it is missing
        "pydantic>=2.14",
        "PyYAML>=6.0",
        "typer>=0.29",
        "rich>=15.0",
        "sacrebleu>=2.6",
        "tensorboard>=2.21",
        "matplotlib>=3.11",
        "pyarrow>=26.0",
    ],
    extras_require={
        "ctranslate2": ["ctranslate2>=4.8.5"],  # a faster engine for labels
        "wandb": ["wandb>=0.31"],  # a board beside TensorBoard
        "dev": [
            "accelerate>=1.15",  # Seq2SeqTrainer, which the benchmark of training runs beside
            "pytest>=9.2",
            "pytest-xdist>=3.8",
            "ruff>=0.17",
            "mypy>=2.4",
            "types-PyYAML",
            "ctranslate2>=4.8.5",
            "wandb>=0.31",
            "uv>=0.13",  # make lock
        ],
    },
)
