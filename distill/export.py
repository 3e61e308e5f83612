"""The form in which a model leaves the run: folders that transformers and CTranslate2 read without anything of ours.

The decoding in them is the one of the reported scores, and the tokenizer cuts documents where the run did.
"""

import copy
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from distill.families import NORMS
from distill.files import read_json, write_json
from distill.generation import longest_output, shortest_output
from distill.student import head_is_tied

# Settings of a generation config that only sampling reads.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")

# Keys of tokenizer_config.json that tell how the run called the tokenizer, or where it was loaded from.
TRACES = ("max_length", "truncation_strategy", "stride", "is_local", "local_files_only", "name_or_path")


def save_model(model: PreTrainedModel, tokenizer: Any, folder: Path, decoding: GenerationConfig | None = None) -> None:
    """Write a model and its tokenizer in Hugging Face format.

    `decoding` is the one of the evaluation; without it, the model's own generation config is written.
    """
    model.save_pretrained(folder)
    if decoding is not None:
        save_decoding(decoding, folder)
    _complete_config(model, tokenizer, folder / "config.json")
    save_tokenizer(tokenizer, folder)
    readable = (folder / "config.json").stat().st_mode
    for file in folder.glob("*.safetensors"):
        file.chmod(readable)  # safetensors writes for the owner only, whatever the umask says


def save_decoding(decoding: GenerationConfig, folder: Path) -> None:
    """Write `generation_config.json`, whole at every moment: other jobs may read the folder."""
    write_json(folder / "generation_config.json", exported_decoding(decoding).to_diff_dict())


def exported_decoding(decoding: GenerationConfig) -> GenerationConfig:
    """Return a config that decodes like `decoding`, and states lengths, beams and n-grams explicitly.

    Lengths count new tokens only. Settings that this kind of search does not read are left out, since transformers
    warns about them.
    """
    exported = copy.deepcopy(decoding)
    exported.max_length = None
    exported.max_new_tokens = longest_output(decoding)
    exported.min_length = None
    exported.min_new_tokens = min(shortest_output(decoding), exported.max_new_tokens)
    exported.no_repeat_ngram_size = decoding.no_repeat_ngram_size or 0
    exported.num_beams = decoding.num_beams or 1
    exported.num_return_sequences = None
    exported.do_sample = False
    for name in SAMPLING:
        setattr(exported, name, None)
    if exported.num_beams == 1:
        exported.early_stopping = None
        exported.length_penalty = None
    else:
        exported.early_stopping = decoding.early_stopping or False
        exported.length_penalty = 1.0 if decoding.length_penalty is None else decoding.length_penalty
    return exported


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer without the truncation and the padding of the last call.

    A fast tokenizer keeps them in its state, and `save_pretrained` writes them into tokenizer.json.
    """
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = {key: value for key, value in read_json(path).items() if key not in TRACES}
    config["clean_up_tokenization_spaces"] = False  # as the summaries of the report were decoded
    if config["tokenizer_class"] == "TokenizersBackend":
        # The name of this class in transformers 4, where it also returns token types unless told otherwise.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["model_input_names"] = ["input_ids", "attention_mask"]
    if isinstance(config.get("extra_special_tokens"), list):
        # The name of transformers 4, which 5 reads too; under the new one 4 expects a dictionary.
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if config.get("bos_token") is None and "cls_token" in config:
        config["bos_token"] = config["cls_token"]  # mBART-50 has none, and CTranslate2 does not load without
    write_json(path, config)


def _complete_config(model: PreTrainedModel, tokenizer: Any, path: Path) -> None:
    """Add to config.json what CTranslate2's converter and transformers 4 read and transformers 5 does not write."""
    config = read_json(path)
    # transformers 4 lets these go over generation_config.json in its pipelines.
    config.pop("task_specific_params", None)
    kind = config["model_type"]
    if kind in NORMS:
        config["normalize_before"], config["normalize_embedding"] = NORMS[kind]
    if kind == "mbart":
        # From this the converter tells mBART-50, which begins with </s>, from mBART.
        config["tokenizer_class"] = type(tokenizer).__name__
    if not head_is_tied(model):
        config["tie_word_embeddings"] = False  # transformers 5 writes true for every T5, and 4 would believe it
    write_json(path, config)
