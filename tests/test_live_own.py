"""Data and weights of one's own: token files, datasets on disk, Hugging Face directories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from live_pools import LENGTH, TINY, formation, pipeline, plan, pool
from zhenfa.errors import CapabilityError, InputError
from zhenfa.live import data
from zhenfa.live.run import run_plan
from zhenfa.live.tokens import tokens_of
from zhenfa.live.weights import sizes_with
from zhenfa.spec.job import Execution

TOKENS = np.arange(3, 1003) % 250
PAIR = formation(pool("a", 1), pool("b", 2))


def dataset(folder: Path, columns: dict[str, arrow.Array], *, shards: int = 2) -> Path:
    """A folder as ``Dataset.save_to_disk`` writes it."""
    folder.mkdir()
    table = arrow.table(columns)
    names = [f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]
    each = -(-len(table) // shards)
    for shard, name in enumerate(names):
        with arrow.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table.slice(shard * each, each), max_chunksize=7)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def rows(values: np.ndarray, kind: arrow.DataType) -> arrow.Array:
    return arrow.array([values[start : start + 33].tolist() for start in range(0, len(values), 33)], kind)


def written(folder: Path, form: str) -> Path:
    """The same tokens in one of the forms that are read."""
    path = folder / form
    match form:
        case "raw.bin":
            TOKENS.astype("<u2").tofile(path)
        case "array.npy":
            np.save(path, TOKENS.astype(np.uint32))
        case "folder":
            path.mkdir()
            np.save(path / "b.npy", TOKENS[400:])
            TOKENS[:400].astype("<u2").tofile(path / "a.bin")
            (path / "c.bin").touch()
        case "lists":
            dataset(path, {"attention_mask": rows(TOKENS % 2, arrow.list_(arrow.int8())),
                           "input_ids": rows(TOKENS, arrow.list_(arrow.int32()))})  # fmt: skip
        case "large lists":
            dataset(path, {"input_ids": rows(TOKENS, arrow.large_list(arrow.int64()))}, shards=1)
    return path


@pytest.mark.parametrize("form", ["raw.bin", "array.npy", "folder", "lists", "large lists"])
def test_tokens_are_the_same_in_every_form(form: str, tmp_path: Path) -> None:
    found = data.corpus(str(written(tmp_path, form)), 256)
    assert (found.size, found.unit) == (1000, "tokens")
    for start, count in ((0, 1000), (0, 0), (395, 10), (399, 1), (400, 1), (999, 1), (30, 70)):
        assert found.read(start, count).tolist() == TOKENS[start : start + count].tolist() if count else True
    draw = {"seed": 1, "step": 2, "global_batch": 4, "length": 20, "vocabulary": 250}
    plain = data.batch(data.corpus(str(written(tmp_path, "array.npy")), 256), **draw)
    assert (data.batch(found, **draw)[0] == plain[0]).all()
    with pytest.raises(InputError, match=r"has the token 2[0-9]{2}, and the model has 200"):
        data.batch(found, **draw | {"vocabulary": 200, "global_batch": 64})


@given(st.lists(st.text(max_size=8), min_size=1, max_size=20), st.booleans(), st.data())
def test_text_of_a_dataset_is_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], large: bool, draw: st.DataObject
) -> None:
    kind = arrow.large_string() if large else arrow.string()
    folder = dataset(tmp_path_factory.mktemp("set") / "d", {"text": arrow.array(texts, kind)})
    whole = "".join(texts).encode()
    found = tokens_of(folder, 256)
    assert (found.size, found.unit) == (len(whole), "bytes")
    start = draw.draw(st.integers(0, len(whole)))
    count = draw.draw(st.integers(0, len(whole) - start))
    assert count == 0 or bytes(found.read(start, count).astype(np.uint8)) == whole[start : start + count]


def test_what_holds_no_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.bin").write_bytes(b"123")
    np.save(tmp_path / "float.npy", np.ones(3))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "empty").mkdir()
    written(tmp_path, "lists").rename(tmp_path / "empty" / "train")
    dataset(tmp_path / "labels", {"label": arrow.array([1, 2])})
    dataset(tmp_path / "nulls", {"text": arrow.array(["a", None])})
    dataset(tmp_path / "words", {"input_ids": arrow.array([["a"]])})
    dataset(tmp_path / "broken", {"text": arrow.array(["abc"])}, shards=1)
    (tmp_path / "broken" / "data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    for name, words in {
        "odd.bin": "does not hold whole tokens of 16 bits",
        "float.npy": "holds 1-dimensional float64, not a row of tokens",
        "object.npy": "cannot be read",
        "empty": "holds no tokens",
        "labels": "has no input_ids and no text; it has label",
        "nulls": "has empty rows",
        "words": "not lists of integers",
        "broken": "cannot be read",
    }.items():
        with pytest.raises(InputError, match=words):
            tokens_of(tmp_path / name, 256)
    with pytest.raises(InputError) as refused:
        tokens_of(tmp_path / "empty", 256)
    assert "train" in (refused.value.hint or "")


def llama(folder: Path, **changes: object) -> Path:
    """A Llama of the sizes of ``TINY`` with other numbers than ours, as ``save_pretrained`` writes it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, vocab_size=256, rms_norm_eps=1e-3, tie_word_embeddings=False, initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="40KB")
    if changes:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.live
def test_training_goes_on_from_weights_of_a_directory(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    folder, tokens = llama(tmp_path / "llama"), written(tmp_path, "lists")
    assert (folder / "model.safetensors.index.json").is_file(), "so that an index is read"
    execution = Execution(steps=2, learning_rate=1e-3, weights=str(folder), data=str(tokens), seed=3)
    chosen = plan(pipeline([5, 3], "ab", 2), pipeline([8], "b", 2))
    run = run_plan(chosen, PAIR, TINY, execution)
    model = LlamaForCausalLM.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    losses = []
    for step in (1, 2):
        inputs, targets = data.batch(data.corpus(str(tokens)), seed=3, step=step, global_batch=4, length=LENGTH)
        logits = model(torch.from_numpy(inputs)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets.copy()).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert run.losses == pytest.approx(losses, rel=1e-5)


def test_directories_of_other_models_are_refused(tmp_path: Path) -> None:
    for number, (change, words) in enumerate({
        "rope_scaling": ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling"),
        "kind": ({"model_type": "mamba"}, "model_type 'mamba'; this version trains weights where it is one of llama"),
        "bias": ({"attention_bias": True}, "attention_bias True"),
        "turned": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type 'yarn'"),
    }.values()):  # fmt: skip
        with pytest.raises(CapabilityError, match=words):
            sizes_with(llama(tmp_path / str(number), **change), TINY)
    with pytest.raises(InputError, match="are of a model with vocabulary 512, the job's has 256"):
        sizes_with(llama(tmp_path / "words", vocab_size=512), TINY)
    with pytest.raises(InputError, match=r"config\.json' cannot be read: No such file or directory\.\n"):
        sizes_with(tmp_path / "nowhere", TINY)
    found = sizes_with(llama(tmp_path / "llama"), TINY)
    assert (found.eps, found.rope_theta) == (1e-3, 500.0)


def test_paths_that_are_not_there_are_refused_before_anything_starts(tmp_path: Path) -> None:
    chosen = plan(pipeline([8], "a", 1))
    for execution in (Execution(data=str(tmp_path / "no.bin")), Execution(weights=str(tmp_path / "none"))):
        with pytest.raises(InputError, match=r"no data called|cannot be read"):
            run_plan(chosen, PAIR, TINY, execution)
