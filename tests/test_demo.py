"""The demo."""

import json

import pytest
from result_files import cells, write_run

from benchmarks import demo, reproduce


def test_the_methods_stand_beside_each_other(monkeypatch, tmp_path, capsys):
    """Runs that are there are not repeated."""
    monkeypatch.setattr(reproduce.subprocess, "run", lambda *a, **k: pytest.fail("a command was run"))
    for method, auroc in (("ce", 0.8), ("patt", 0.9)):
        write_run(tmp_path / method, 0, auroc, class_counts=[9, 2], epoch=30, epochs=30, flags={})
        file = tmp_path / method / "results.json"
        results = json.loads(file.read_text())
        results["mean"].append(results["mean"][0] | {"score": "combined", "auroc": auroc + 0.05})
        file.write_text(json.dumps(results))
    demo.main(["--srp", str(tmp_path)])
    head, rows, note = cells(capsys.readouterr().out)
    assert head[1:3] == ["calibration", "score"] and head[-1] == "AUROC ↑"
    assert [row[-1] for row in rows] == ["80.00", "70.00", "85.00", "90.00", "80.00", "95.00"]
    assert [row[:2] for row in rows[3:5]] == [["PATT", "none"], ["", "FC"]]
    assert "9 to 2 training images" in note
