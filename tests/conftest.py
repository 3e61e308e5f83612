"""Tiny models of every family, made from configs; a tiny corpus; subprocesses that run the real commands."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig

from distill.pretrained import train_tokenizer
from distill.sections import Tokenizer

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
PATIENCE_SECONDS = 1800.0
"""After so long a test counts as hung. No test passes because of it, so a busy machine may be slow."""
os.environ.setdefault("OMP_NUM_THREADS", "1")  # subprocesses too: the tests' models are tiny
torch.set_num_threads(1)

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "green",
    "birds",
    "watch",
    "from",
    "tall",
    "trees",
    "near",
    "old",
    "stone",
]


def make_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Documents of random words; the summary is the first few of them."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        length = int(torch.randint(8, 40, (), generator=generator))
        words = [WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator).tolist()]
        rows.append(
            {"id": f"r{number}", "document": " ".join(words) + ".", "summary": " ".join(words[: 3 + length % 4])}
        )
    return rows


def write_corpus(folder: Path, train: int = 64) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, count, seed in (("train", train, 0), ("validation", 8, 1), ("test", 8, 2)):
        lines = [json.dumps(row) for row in make_rows(count, seed)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    texts = (row[field] for row in make_rows(200) for field in ("document", "summary"))
    return train_tokenizer(Tokenizer(kind="bpe", vocabulary=320), "bart", texts)


SIZES: dict[str, Any] = {
    "d_model": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
}
STARTS = {
    "bart": "eos",
    "mbart": "eos",
    "pegasus": "pad",
    "marian": "pad",
    "m2m_100": "eos",
    "t5": "pad",
    "mt5": "pad",
    "longt5": "pad",
}


def make_model(
    family: str, tokenizer: Any, encoder: int = 3, decoder: int = 4, noise: float = 0.02, **changes: Any
) -> Any:
    """A tiny model with random weights, noise on those that begin at a constant."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    start = ids[f"{STARTS[family]}_token_id"]
    if family in ("t5", "mt5", "longt5"):
        sizes = {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_heads": 2,
            "num_layers": encoder,
            "num_decoder_layers": decoder,
            "initializer_factor": 0.6 if family == "mt5" else 1.0,  # whose logits are not scaled down
        }
    else:
        sizes = SIZES | {"encoder_layers": encoder, "decoder_layers": decoder}
    torch.manual_seed(0)
    settings = {"vocab_size": len(tokenizer), "decoder_start_token_id": start} | sizes | ids | changes
    config = AutoConfig.for_model(family, **settings)
    model = AutoModelForSeq2SeqLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # static positions stay
                parameter.add_(noise * torch.randn_like(parameter))
    model.generation_config = GenerationConfig(num_beams=3, max_new_tokens=7, decoder_start_token_id=start, **ids)
    return model.eval()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"NO SMALL DISK: only root may mount one here ({mounted.stderr.decode().strip()})")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def run_command(*command: str, cwd: Path = ROOT, timeout: float = PATIENCE_SECONDS) -> subprocess.CompletedProcess[str]:
    """Run one of the project's commands for real."""
    return subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, timeout=timeout)
