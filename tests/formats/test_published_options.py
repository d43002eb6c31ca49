"""Option files of Mix-of-Show, accepted as they are."""

from __future__ import annotations

import json

import pytest

from mixshow.cli.main import main
from mixshow.core.errors import MixshowError
from mixshow.formats.published_options import read_concept_list
from mixshow.recipes.train import read_options
from mixshow.recipes.train_check import missing_paths


def test_published_training_files_become_our_options(shared_fixtures):
    files = sorted((shared_fixtures / "published_options" / "options" / "train").glob("*.yml"))
    assert len(files) == 2
    hina, potter = (read_options(file, []) for file in files)
    assert potter.concept.tokens == "<potter1>+<potter2>" and potter.concept.initialiser == "<rand-0.013>+man"
    assert (potter.train.lr.embedding, potter.train.lr.text_encoder, potter.train.lr.unet) == (1e-3, 1e-5, 1e-4)
    assert (potter.train.repeats, potter.train.batch_size, potter.train.embedding_norm_stop) == (500, 2, 0.55)
    part = potter.network.part("unet")
    assert (part.placement, part.rank, part.alpha) == ("Attention", 4, 4.0)
    assert (potter.loss.mask, hina.loss.mask) == (True, False)
    assert (potter.loss.attention_weight, potter.loss.attention_form) == (0.01, "outside")
    assert (potter.data.transform, potter.data.size, potter.data.templates) == ("human_crop", 512, "human")
    assert potter.data.shuffle_tags and potter.data.keep_tags == 1
    assert potter.sample.seeds == list(range(8)) and potter.checkpoint.every == 10000


def test_dry_run_prints_them_and_names_everything_missing(shared_fixtures, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in (shared_fixtures / "published_options" / "options" / "train").glob("*.yml"):
        assert main(["train", str(file), "--dry-run"]) == 0
        printed = capsys.readouterr().out
        assert "initialiser: <rand-0.013>+" in printed
        missing = [line for line in printed.splitlines() if line.startswith("missing: ")]
        assert len(missing) == 3  # the model, the concept list, the prompts
        assert main(["train", str(file)]) == 2
        assert capsys.readouterr().err.count("no such") == 3


def test_a_concept_list_that_is_there_is_followed(shared_fixtures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published = shared_fixtures / "published_options"
    place = tmp_path / "datasets/data_cfgs/MixofShow/single-concept/characters/real"
    place.mkdir(parents=True)
    (place / "potter.json").write_text((published / "datasets/single-concept/potter.json").read_text())
    options = read_options(published / "options/train/8101_EDLoRA_potter_Cmix_B4_Repeat500.yml", ["train.batch_size=4"])
    assert str(options.data.masks) == "datasets/data/characters/real/Harry_Potter/mask"
    assert options.train.batch_size == 4
    assert sum("Harry_Potter" in line for line in missing_paths(options)) == 3


def test_a_test_options_file_is_recognised(shared_fixtures, capsys):
    file = next((shared_fixtures / "published_options" / "options" / "test").glob("*.yml"))
    assert main(["train", str(file), "--dry-run"]) == 2
    assert "published test file" in capsys.readouterr().err


def test_unknown_keys_and_values_are_named_together(tmp_path, capsys):
    file = tmp_path / "published.yml"
    file.write_text(
        "datasets: {train: {concept_list: x.json, instance_transform: [{type: Swirl}], batch_size_per_gpu: two}}\n"
        "models: {pretrained_path: a/b, new_concept_token: <a>, initializer_token: man, noise_ofset: 1}\n"
        "train: {optim_g: {type: AdamW}}\n"
    )
    assert main(["train", str(file), "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert "models.noise_ofset" in message and "'Swirl'" in message and "batch_size_per_gpu" in message


def test_concept_lists_for_fusion(shared_fixtures, tmp_path):
    folder = shared_fixtures / "published_options" / "datasets" / "multi-concept"
    concepts = read_concept_list(folder / "potter+hermione+thanos_chilloutmix.json")
    assert [name for *_, name in concepts][1] == "<hermione1> <hermione2>"
    assert concepts[0][1:3] == (1.0, 1.0) and concepts[0][0].name == "edlora_model-latest.pth"
    for wrong in ({}, [], [{"unet_alpha": 1}], [{"lora_path": "x", "unet_alpha": "much"}], ["x"]):
        (tmp_path / "list.json").write_text(json.dumps(wrong))
        with pytest.raises(MixshowError, match="expected"):
            read_concept_list(tmp_path / "list.json")
