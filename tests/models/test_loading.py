"""A model that cannot be loaded as a whole is refused in one sentence that names the place and the cause."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rld.errors import ModelError
from rld.models.loading import load_config, load_model, load_tokenizer, require_end
from tests.support import tiny


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.model().save_pretrained(folder, max_shard_size="30KB")
    tiny.tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path, **options):
    model, tokenizer = load_model(str(folder), options), load_tokenizer(str(folder), options)
    require_end(tokenizer, load_config(str(folder), options)[1], str(folder))
    return model


def edit(path: Path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(path: Path):
    path.write_bytes(path.read_bytes()[:-10])


BREAKAGES = {
    "config.json is not valid JSON": lambda f: (f / "config.json").write_text('{"model_type": '),
    "config.json holds no object": lambda f: (f / "config.json").write_text("[]"),
    "is a Git LFS pointer": lambda f: next(f.glob("*.safetensors")).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
    ),
    "it is cut off or damaged": lambda f: cut(next(f.glob("*.safetensors"))),
    "files of weights are missing": lambda f: next(f.glob("*.safetensors")).unlink(),
    "has no weights": lambda f: [path.unlink() for path in f.glob("model*")],
    "has no config.json": lambda f: (f / "config.json").unlink(),
    "there is none; copy the files of its tokenizer": lambda f: (f / "tokenizer.json").unlink(),
    "tokenizer.json is not valid JSON": lambda f: (f / "tokenizer.json").write_text("{"),
    "lack 9 of its weights, such as model.layers.2": lambda f: edit(f / "config.json", num_hidden_layers=3),
    "it has 1,000,000 layers, and its files have": lambda f: edit(f / "config.json", num_hidden_layers=1_000_000),
    "is .15, 32. in its files and .15, 64. by config.json": lambda f: edit(f / "config.json", hidden_size=64),
    "a model of type 't5' is no causal language model": lambda f: edit(f / "config.json", model_type="t5"),
    "lack .*, but have model.embed_tokens.weight": lambda f: edit(f / "config.json", model_type="gpt2"),
    "does not recognize this architecture": lambda f: edit(f / "config.json", model_type="nothing"),
    "expected int, got str": lambda f: edit(f / "config.json", hidden_size="wide"),
    "set trust_remote_code: true": lambda f: edit(
        f / "config.json", model_type="own", auto_map={"AutoConfig": "x.C", "AutoModelForCausalLM": "x.M"}
    ),
}


@pytest.mark.parametrize("message", BREAKAGES)
def test_broken_files_are_named(sound, tmp_path, message):
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    BREAKAGES[message](folder)
    with pytest.raises(ModelError, match=f"(?s)cannot load .*{folder}.*{message}") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_files_that_loading_does_not_read_may_be_anything(sound, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    for name in ("pytorch_model.bin", "consolidated.safetensors"):  # of which only the other format was downloaded
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    (folder / "train.json").write_text('{"question": "1"}\n{"question": "2"}\n')
    assert load(folder).num_parameters()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float99"}, "dtype cannot be 'float99'"),
        ({"dtype": "int8"}, "dtype cannot be 'int8'"),
        ({"nothing": 3}, "unexpected keyword argument 'nothing'"),
        ({"attn_implementation": "flash_attention_2"}, "(?i)flash"),
    ],
)
def test_options_that_cannot_be_are_named(sound, options, message):
    with pytest.raises(ModelError, match=message):
        load(sound, **options)


def test_a_hub_id_without_a_network_says_how_to_get_it():
    with pytest.raises(ModelError, match=r"not in the cache, and .*; download it with `hf download nobody/nothing`"):
        load(Path("nobody/nothing"), local_files_only=True)


def test_a_folder_that_is_missing_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    for name, beside in {
        "runs/frist": "; runs has first",
        "./frist": "; the current folder has runs",
        "runs/second/student": ", nor runs/second",
    }.items():
        with pytest.raises(ModelError, match=rf"cannot load '{name}': there is no such folder{beside}$"):
            load_model(name, {})


def test_a_configuration_with_an_encoder_is_refused(sound, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    edit(folder / "config.json", is_encoder_decoder=True)
    with pytest.raises(ModelError, match=r"has an encoder \(is_encoder_decoder in its config\.json\)"):
        load_config(str(folder), {})


def test_weights_that_are_not_used_are_told(sound, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    edit(folder / "config.json", num_hidden_layers=1)
    with pytest.warns(UserWarning, match="9 weights of its files are not used, such as model.layers.1"):
        load(folder)


def test_an_end_comes_from_the_configuration_or_the_model_is_refused(sound, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings = {name: value for name, value in settings.items() if name not in ("eos_token", "pad_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(str(folder))
    require_end(tokenizer, load_config(str(folder), {})[1], str(folder))
    assert tokenizer.pad_token == "<eos>"
    for name in ("config.json", "generation_config.json"):
        edit(folder / name, eos_token_id=None)
    with pytest.raises(ModelError, match="has no end token, so no answer of it would end"):
        load(folder)
