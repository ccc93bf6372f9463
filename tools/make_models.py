"""Write model documents of the catalog from Hugging Face configurations.

Usage: ``python tools/make_models.py [FOLDER]``. FOLDER holds configurations named ``ORGANISATION--NAME_config.json``;
by default those that the package ``aiconfigurator-core`` ships. Only facts are kept: dimensions, in our own form, with
the address of the configuration as their source. Plain dense models whose dimensions are few stand below.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from zhenfa.spec.huggingface import from_huggingface
from zhenfa.spec.model import Model

FOLDER = Path(__file__).parents[1] / "src/zhenfa/catalog/data/models"

# configuration -> (name, title, billions of parameters, billions active; as the model's page states them)
SHIPPED: dict[str, tuple[str, str, float, float | None]] = {
    "Qwen--Qwen3-0.6B": ("qwen3-0.6b", "Qwen3 0.6B", 0.6, None),
    "Qwen--Qwen3-1.7B": ("qwen3-1.7b", "Qwen3 1.7B", 1.7, None),
    "Qwen--Qwen3-Coder-480B-A35B-Instruct": ("qwen3-coder-480b-a35b", "Qwen3-Coder 480B A35B", 480, 35),
    "Qwen--Qwen3.5-397B-A17B": ("qwen3.5-397b-a17b", "Qwen3.5 397B A17B", 397, 17),
    "Qwen--Qwen3.5-122B-A10B": ("qwen3.5-122b-a10b", "Qwen3.5 122B A10B", 122, 10),
    "Qwen--Qwen3.5-35B-A3B": ("qwen3.5-35b-a3b", "Qwen3.5 35B A3B", 35, 3),
    "Qwen--Qwen3.5-27B": ("qwen3.5-27b", "Qwen3.5 27B", 27, None),
    "XiaomiMiMo--MiMo-V2-Flash": ("mimo-v2-flash", "MiMo-V2-Flash", 309, 15),
    "deepseek-ai--DeepSeek-V4-Flash": ("deepseek-v4-flash", "DeepSeek-V4-Flash", 284, 13),
    "deepseek-ai--DeepSeek-V4-Pro": ("deepseek-v4-pro", "DeepSeek-V4-Pro", 1600, 49),
    "google--gemma-4-26B-A4B": ("gemma-4-26b-a4b", "Gemma 4 26B A4B", 25.2, 3.8),
    "nvidia--Gemma-4-31B-IT-NVFP4": ("gemma-4-31b", "Gemma 4 31B", 30.7, None),
    "meta-llama--Llama-4-Maverick-17B-128E-Instruct": ("llama4-maverick", "Llama 4 Maverick", 400, 17),
    "mistralai--Mixtral-8x22B-v0.1": ("mixtral-8x22b", "Mixtral 8x22B", 141, 39),
    "moonshotai--Kimi-K2.5": ("kimi-k2.5", "Kimi K2.5 (language model)", 1026, 32),
    "zai-org--GLM-5.2": ("glm-5.2", "GLM-5.2", 743, 41),
    "MiniMaxAI--MiniMax-M2.5": ("minimax-m2.5", "MiniMax-M2.5", 229, 11),
    "nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-FP8": ("nemotron-3-super-120b-a12b", "Nemotron 3 Super", 120, 12),
    "nvidia--NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": ("nemotron-3-ultra-550b-a55b", "Nemotron 3 Ultra", 550, 55),
    "nvidia--Nemotron-H-56B-Base-8K": ("nemotron-h-56b", "Nemotron-H 56B", 56, None),
}

# name: title, page, type, hidden, layers, heads, key-value heads, head size, feed-forward, vocabulary, tied, billions
Dense = tuple[str, str, str, int, int, int, int, int, int, int, bool, float]
DENSE: dict[str, Dense] = {
    "qwen3-4b": ("Qwen3 4B", "Qwen/Qwen3-4B", "qwen3", 2560, 36, 32, 8, 128, 9728, 151936, True, 4.0),
    "qwen2.5-7b": ("Qwen2.5 7B", "Qwen/Qwen2.5-7B", "qwen2", 3584, 28, 28, 4, 128, 18944, 152064, False, 7.61),
    "qwen2.5-14b": ("Qwen2.5 14B", "Qwen/Qwen2.5-14B", "qwen2", 5120, 48, 40, 8, 128, 13824, 152064, False, 14.7),
    "qwen2.5-32b": ("Qwen2.5 32B", "Qwen/Qwen2.5-32B", "qwen2", 5120, 64, 40, 8, 128, 27648, 152064, False, 32.5),
    "qwen2.5-72b": ("Qwen2.5 72B", "Qwen/Qwen2.5-72B", "qwen2", 8192, 80, 64, 8, 128, 29568, 152064, False, 72.7),
    "llama3.2-1b": ("Llama 3.2 1B", "meta-llama/Llama-3.2-1B", "llama", 2048, 16, 32, 8, 64, 8192, 128256, True, 1.23),
    "llama3.2-3b": ("Llama 3.2 3B", "meta-llama/Llama-3.2-3B", "llama", 3072, 28, 24, 8, 128, 8192, 128256, True, 3.21),
    "llama2-13b": ("Llama 2 13B", "meta-llama/Llama-2-13b-hf", "llama", 5120, 40, 40, 40, 128, 13824, 32000, False, 13),
}  # fmt: skip

POSITIONS = {("qwen3", True): 40960, ("qwen2", False): 131072, ("llama", True): 131072, ("llama", False): 4096}
"""Longest context of each family above."""


def shipped_folder() -> Path:
    """Return the folder of configurations inside ``aiconfigurator-core``."""
    found = importlib.util.find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations:
        sys.exit("aiconfigurator-core is not installed: pip install aiconfigurator-core==0.12.0, or name a FOLDER.")
    return Path(found.submodule_search_locations[0]) / "model_configs"


def published(billions: float, active: float | None, page: str) -> dict[str, Any]:
    """Return what the model's page states."""

    def count(value: float) -> dict[str, Any]:
        return {"value": value, "unit": "G", "source": page, "confidence": "vendor-datasheet"}

    return {"parameters": count(billions)} | ({"active": count(active)} if active else {})


def document(model: Model, name: str, title: str, page: str, size: dict[str, Any]) -> str:
    """Return the text of a model document; raises if it does not describe the same operators."""
    kept = model.model_dump(exclude_defaults=True, exclude_none=True, mode="json")
    head = {
        "schema": Model.schema_name, "name": name, "title": title, "source": f"{page}/blob/main/config.json",
        "architecture": model.architecture, "published": size,
    }  # fmt: skip
    body = {key: value for key, value in kept.items() if key not in {*head, "schema", "notes"}}
    if model.notes:
        body["note"] = " ".join(model.notes)
    data = json.loads(json.dumps(head | body))
    again = Model.from_data(data).graph()
    if (again.kinds, again.layers, again.head) != (model.graph().kinds, model.graph().layers, model.graph().head):
        raise ValueError(f"{name}: the document says something else than the configuration")
    writer = YAML()
    writer.default_flow_style = None
    writer.width = 4096
    text = io.StringIO()
    writer.dump(data, text)
    return text.getvalue()


def main() -> None:
    """Write every document that has a configuration."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else shipped_folder()
    for file, (name, title, billions, active) in SHIPPED.items():
        page = "https://huggingface.co/" + file.replace("--", "/")
        data = json.loads((folder / f"{file}_config.json").read_text(encoding="utf-8"))
        if file.startswith("nvidia--Gemma"):
            data.pop("quantization_config", None)
        text = document(from_huggingface(data, name=name), name, title, page, published(billions, active, page))
        (FOLDER / f"{name}.yaml").write_text(text, encoding="utf-8")
    for name, row in DENSE.items():
        title, place, kind, hidden, layers, heads, kv_heads, head_dim, size, vocabulary, tied, billions = row
        page = f"https://huggingface.co/{place}"
        data = {
            "model_type": kind, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": size,
            "vocab_size": vocabulary, "tie_word_embeddings": tied, "max_position_embeddings": POSITIONS[kind, tied],
        }  # fmt: skip
        text = document(from_huggingface(data, name=name), name, title, page, published(billions, None, page))
        (FOLDER / f"{name}.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
