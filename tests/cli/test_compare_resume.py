"""`penstock compare --no-resume` touches no folder that holds a study."""

from penstock.cli import main


def test_a_folder_with_a_study_is_refused_without_resume(tmp_path, capsys):
    (tmp_path / "study.json").write_text("{}")
    assert main(["compare", "gla", "--task", "mqar", "--no-resume", "--out", str(tmp_path)]) == 2
    assert "holds a study already" in capsys.readouterr().err
    assert (tmp_path / "study.json").read_text() == "{}"
