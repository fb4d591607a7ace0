"""The paper's ablations: what their variants are, and a table that one command makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pose_data import learnable
from typer.testing import CliRunner

from pevl_cli.cli.app import app
from pevl_cli.errors import PevlError, UsageError
from pevl_cli.evaluation.ablation import ABLATIONS, VARIANTS, _config, _first_equal_variant
from pevl_cli.model.config import CONFIGS

PAPER = CONFIGS["vit-b-16"]
SMALL = ("model.width=32", "model.embed_dim=16", "model.text_width=16", "model.vocab_size=300")


def test_each_table_of_the_paper_has_its_rows_and_figures() -> None:
    rows = {a.table: len(a.rows) for a in ABLATIONS.values()}
    assert rows == {4: 5, 5: 5, 6: 8, 7: 7, 8: 6, 9: 2}
    for ablation in ABLATIONS.values():
        assert all(row.variant in VARIANTS for row in ablation.rows)
        assert all(row.paper_top1 is not None for row in ablation.rows)
    assert {row.variant for a in ABLATIONS.values() for row in a.rows} == set(VARIANTS)


def test_only_what_the_config_has_to_begin_with_is_the_same_variant() -> None:
    # The paper's model has Eq. (5), and coordinates as its pose input; `mini` has neither.
    assert {v for v in VARIANTS if _first_equal_variant(v, PAPER) != v} == {
        "semantic-loss",
        "p-coordinates",
    }
    assert {v for v in VARIANTS if _first_equal_variant(v, CONFIGS["mini"]) != v} == {
        "vanilla-loss"
    }


def test_variants_are_what_the_paper_says() -> None:
    def of(name: str):  # type: ignore[no-untyped-def]
        return _config(PAPER, VARIANTS[name])

    assert of("pevl") == PAPER.model_copy(update={"classes": 1})
    assert of("v").used_similarities == ("vs",) and not of("v").text
    assert of("v-p").used_similarities == ("concat",) and not of("v-p").text
    assert not (of("v-p-t").p2v or of("v-p-t").v2p or of("v-p-t").refinement_loss)
    assert of("v-p-t").video_adapters and not of("frozen-encoders").video_adapters
    assert of("ucmr").p2v and of("ucmr").used_similarities == ("concat",)
    assert not of("baseline").pose and of("baseline").used_similarities == ("concat",)
    assert (of("p-heatmaps").pose_features, of("p-coordinates").pose_features) == ("heatmap", "xy")
    assert [of(f"{m}-adapters").video_adapters for m in ("video", "pose")] == [True, False]


@pytest.mark.slow
def test_one_command_makes_the_table_and_a_second_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = learnable(tmp_path), tmp_path / "out"
    line = ["ablate", "pose-input", "--dataset", str(file), "--out", str(out)]
    line += ["--device", "cpu", "--epochs", "2", "--seed", "3", "--set", "optim.min_steps=8"]
    line += ["--set", "optim.batch_size=8"]
    for given in SMALL:
        line += ["--set", given]
    completed = CliRunner().invoke(app, line)
    assert completed.exit_code == 0, completed.output
    table = (out / "pose-input.md").read_text()
    assert "### Table 9" in table and "| Heatmaps | " in table and "| 80.1 | 96.0 |" in table
    figures = out / "p-heatmaps-seed3" / "figures.json"
    first = json.loads(figures.read_text())
    assert (first["split"], first["clips"]) == ("test", 4)
    stored = json.loads((figures.parent / "last" / "config.json").read_text())["model"]
    assert (stored["pose_features"], stored["layout"]) == ("heatmap", "jhmdb15")
    assert not (figures.parent / "state.pt").exists()
    # A second seed is added; what is there already is read, not trained again.
    figures.write_text(json.dumps(first | {"top1": 0.123}))
    completed = CliRunner().invoke(app, [*line, "--seed", "4"])
    assert completed.exit_code == 0, completed.output
    assert (out / "p-heatmaps-seed4").is_dir() and "2 seeds" in (out / "pose-input.md").read_text()
    assert json.loads(figures.read_text())["top1"] == 0.123
    completed = CliRunner().invoke(app, [*line, "--epochs", "3"])
    assert isinstance(completed.exception, UsageError) and "another 'optim'" in str(
        completed.exception
    )
    (tmp_path / "other").mkdir()
    other = learnable(tmp_path / "other", joints=13)
    elsewhere = [str(other) if part == str(file) else part for part in line]
    completed = CliRunner().invoke(app, elsewhere)
    assert "was made with another" in str(completed.exception)
    figures.write_text('{"top1": 0.')
    completed = CliRunner().invoke(app, line)
    assert isinstance(completed.exception, PevlError) and "is damaged" in str(completed.exception)
    monkeypatch.chdir(tmp_path)
    at = line.index("--out")
    completed = CliRunner().invoke(app, [*line[:at], *line[at + 2 :]])
    assert completed.exit_code == 0, completed.output
    assert (tmp_path / "runs" / "halves-mini-ablation" / "pose-input.md").is_file()
    # Its other tables are about videos too.
    line[line.index("pose-input")] = "ucmr"
    completed = CliRunner().invoke(app, line)
    assert "needs videos" in str(completed.exception)


def test_a_variant_that_does_not_fit_is_reported() -> None:
    with pytest.raises(UsageError, match="does not fit these settings"):
        _config(CONFIGS["mini"], {"pose_features": "heatmap"})
