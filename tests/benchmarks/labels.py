"""python -m tests.benchmarks.labels [--documents 512] [--rounds 3] [--batch 32] [--corpus FILE] [--teacher FOLDER]

Documents a second at 4 beams: a plain `generate` loop in corpus order at a fixed batch size, the label writer with the
engine of Hugging Face, and with CTranslate2 in fp32 and int8; the same teacher, threads and documents, taking turns.
The demo's teacher reads 128 tokens; to read whole abstracts its table of positions is repeated up to 512.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distill.ctranslate import CTranslate2, convert
from distill.formats import read_records
from distill.generation import Engine, HuggingFace, generation_config
from distill.pretrained import load_model, load_tokenizer
from distill.sections import Generation
from distill.summaries import Contents, SummaryWriter
from distill.tokens import Encoder, tokenize

ROOT = Path(__file__).parents[2]
CORPUS = ROOT.parent / "shared" / "data" / "arxiv_title" / "test.jsonl.xz"
POSITIONS = 512
DECODING = Generation(num_beams=4, max_new_tokens=32, early_stopping=True)


def load(weights: str, device: torch.device) -> tuple[Any, Any]:
    model, tokenizer = load_model(weights), load_tokenizer(weights)
    if model.config.model_type == "bart" and model.config.max_position_embeddings < POSITIONS:
        for stack in (model.get_encoder(), model.get_decoder()):
            table, offset = stack.embed_positions.weight.data, stack.embed_positions.offset
            repeated = table[offset:].repeat(-(-POSITIONS // len(table[offset:])), 1)[:POSITIONS]
            stack.embed_positions.weight.data = torch.cat([table[:offset], repeated])
            stack.embed_positions.num_embeddings = POSITIONS + offset
        model.config.max_position_embeddings = POSITIONS
    return model.to(device), tokenizer


def plain_loop(model: Any, tokenizer: Any, texts: list[str], batch: int) -> float:
    """The share of padding; what people write: corpus order, a fixed batch size."""
    padded = real = 0
    for start in range(0, len(texts), batch):
        given = tokenizer(
            texts[start : start + batch], return_tensors="pt", padding=True, truncation=True, max_length=POSITIONS
        ).to(model.device)
        inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
        output = model.generate(**inputs, num_beams=4, max_new_tokens=32, early_stopping=True)
        tokenizer.batch_decode(output, skip_special_tokens=True)
        padded, real = padded + given["attention_mask"].numel(), real + int(given["attention_mask"].sum())
    return 1 - real / padded


def our_writer(engine: Engine, source: list[list[int]], batch_tokens: int) -> float:
    """The share of padding; everything that labelling does, the shard file included."""
    contents = Contents("d", "t", "m", {}, {}, shards=1)
    ids = [str(number) for number in range(len(source))]
    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(Path(folder), contents, engine, ids, source, batch_tokens)
        writer.write(0)
        plan = writer.plan(0)
    padded = sum(len(batch) * max(len(source[i]) for i in batch) for batch in plan)
    return 1 - sum(map(len, source)) / padded


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.labels")
    parser.add_argument("--documents", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="documents of a batch of the plain loop")
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--teacher", default=str(ROOT / "jobs" / "recipes" / "demo-teacher"))
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load(options.teacher, device)
    rows = [row for _, row in itertools.islice(read_records(options.corpus, ()), options.documents)]
    source = tokenize(Encoder(tokenizer, POSITIONS, 32), rows).source
    config = generation_config(model, DECODING, 32)
    texts, budget = [row["document"] for row in rows], options.batch * max(map(len, source))
    contestants: dict[str, Callable[[], float]] = {
        "plain generate loop": lambda: plain_loop(model, tokenizer, texts, options.batch),
        "ours, huggingface": lambda: our_writer(HuggingFace(model, tokenizer, config, device), source, budget),
    }
    folder = tempfile.TemporaryDirectory()
    for compute in ("fp32", "int8") if device.type == "cpu" else ("fp32", "fp16", "int8"):
        path = Path(folder.name) / compute
        model.save_pretrained(Path(folder.name) / "source")
        convert(model, tokenizer, str(Path(folder.name) / "source"), compute, path, device)
        engine = CTranslate2(path, tokenizer, config, compute, device)
        contestants[f"ours, ctranslate2 {compute}"] = lambda engine=engine: our_writer(engine, source, budget)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    padding: dict[str, float] = {}
    for _ in range(options.rounds):
        for name, run in contestants.items():
            began = time.perf_counter()
            padding[name] = run()
            seconds[name].append(time.perf_counter() - began)
    lengths = [len(row) for row in source]
    print(f"{len(rows)} documents of {statistics.mean(lengths):.0f} tokens (longest {max(lengths)}), {device.type}, "
          f"{torch.get_num_threads()} threads, {options.rounds} rounds, medians")  # fmt: skip
    first = statistics.median(seconds["plain generate loop"])
    for name, each in seconds.items():
        median = statistics.median(each)
        print(
            f"{name:24} {len(rows) / median:7.2f} documents/s  {first / median:5.2f} x  padding {100 * padding[name]:4.1f} %"
        )
    folder.cleanup()


if __name__ == "__main__":
    main()
