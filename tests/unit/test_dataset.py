"""The images found in each layout of a data folder, and the reported problems."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from edgeall.edge_runtime.errors import DataError
from edgeall.train.data.dataset import independent_notes, load_dataset, positive_labels, unit
from edgeall.train.data.samples import Problem, Sample
from edgeall.train.data.subsets import GIVEN_SUBSETS


def put(root: Path, *names: str) -> Path:
    """Create empty files: `load_dataset` only reads names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def paths(root: Path) -> list[tuple[str, str, str | None]]:
    return [(sample.path, sample.label, sample.subject) for sample in load_dataset(root).samples]


# --- one folder per class ---------------------------------------------------------------------------------------------


def test_a_folder_per_class_with_images_anywhere_below_it(tmp_path: Path) -> None:
    put(tmp_path, "Pro/b.PNG", "Pro/slide1/deep/a.jpeg", "Benign/x.tif", "README.txt")
    dataset = load_dataset(tmp_path)
    assert (dataset.root, dataset.layout, dataset.labels) == (tmp_path, "folders", ("Benign", "Pro"))
    assert dataset.samples == (
        Sample("Benign/x.tif", "Benign"),
        Sample("Pro/b.PNG", "Pro"),
        Sample("Pro/slide1/deep/a.jpeg", "Pro"),
    )
    assert dataset.problems == ()
    assert unit(dataset) == "field"


def test_hidden_files_and_folders_are_not_there(tmp_path: Path) -> None:
    put(tmp_path, "A/1.png", "B/1.png", ".truth/masks/1.png", "A/.thumb.png", "A/.cache/2.png", ".a.png")
    dataset = load_dataset(tmp_path)
    assert [sample.path for sample in dataset.samples] == ["A/1.png", "B/1.png"]
    assert dataset.problems == ()


def test_what_is_skipped_is_named(tmp_path: Path) -> None:
    put(tmp_path, "A/1.png", "A/notes.txt", "A/Thumbs.db", "B/1.png", "stray.png", "empty/readme", "A/none")
    (tmp_path / "void").mkdir()
    assert load_dataset(tmp_path).problems == (
        Problem("A/Thumbs.db", "not an image suffix (.db)"),
        Problem("A/none", "not an image suffix (none)"),
        Problem("A/notes.txt", "not an image suffix (.txt)"),
        Problem("empty", "no image in this folder: not taken as a class"),
        Problem("empty/readme", "not an image suffix (none)"),
        Problem("stray.png", "lies in no class folder"),
        Problem("void", "no image in this folder: not taken as a class"),
    )


def test_a_class_folder_may_be_a_link_but_no_link_is_followed_below_it(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "1.png")
    root = put(tmp_path / "root", "A/1.png")
    os.symlink(tmp_path / "elsewhere", root / "B")
    os.symlink(root, root / "A" / "loop")
    dataset = load_dataset(root)
    assert [sample.path for sample in dataset.samples] == ["A/1.png", "B/1.png"]
    assert dataset.problems == (Problem("A/loop", "a link to a folder: not followed"),)


@pytest.mark.parametrize(
    "names",
    [
        ("Original/Benign/1.png", "Original/Pro/1.png", "Segmented/Benign/1.png", "Segmented/Pro/1.png"),
        ("Original/Benign/1.png", "Original/Pro/1.png"),
        ("blood/Benign/1.png", "blood/Pro/1.png"),
        ("train/Benign/1.png", "train/Pro/1.png", "spare/Pro/1.png"),
        ("one/Benign/1.png", "one/Pro/1.png", "two/Benign/1.png", "two/Pro/1.png", "three"),
    ],
)
def test_classes_one_level_down_are_pointed_at(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = put(tmp_path, *names)
    with pytest.raises(DataError, match="one level further down") as caught:
        load_dataset(root)
    assert f"--data {root / Path(names[0]).parts[0]}" in caught.value.hint
    assert load_dataset(root / Path(names[0]).parts[0]).labels == ("Benign", "Pro")


def test_numbered_folders_inside_of_classes_are_slides(tmp_path: Path) -> None:
    put(tmp_path, "Benign/slide1/1.png", "Benign/slide2/1.png", "Pro/slide1/1.png", "Pro/slide2/1.png")
    assert load_dataset(tmp_path).labels == ("Benign", "Pro")


def test_nothing_to_use_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    put(tmp_path, "flat/1.png", "flat/2.png", "text/a/notes.txt", "file.zip")
    for bad, message in {
        "missing": "no such folder",
        "flat": "no class folder with images",
        "text": "no class folder with images",
        "file.zip": "neither a folder nor a .csv manifest",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            load_dataset(tmp_path / bad)
        assert caught.value.hint
        assert bad in caught.value.message


@pytest.mark.parametrize("name", [" Pro", "Pro ", "P\nro", "P\tro", "Pro\x1b[2J", "P\u2028ro", os.fsdecode(b"Pr\xf6")])
def test_a_folder_whose_name_cannot_be_a_label(tmp_path: Path, name: str) -> None:
    put(tmp_path, "Benign/1.png", f"{name}/1.png")
    with pytest.raises(DataError, match="control character") as caught:
        load_dataset(tmp_path)
    assert caught.value.hint == "rename the folder"
    assert repr(name) in caught.value.message


@pytest.mark.parametrize("name", ["Pro B", "白血病", "a,b", "ill: yes", "ক\u200dষ"])
def test_a_folder_whose_name_is_an_uncommon_label(tmp_path: Path, name: str) -> None:
    put(tmp_path, "Benign/1.png", f"{name}/1.png")
    assert name in load_dataset(tmp_path).labels


def test_positive_labels() -> None:
    assert positive_labels(("Benign", "Early", "Pre", "Pro")) == ("Early", "Pre", "Pro")
    assert positive_labels(("all", "hem")) == ("all",)
    assert positive_labels(("NORMAL", "sick")) == ("sick",)
    assert positive_labels(("a", "b")) == ()
    assert positive_labels(("benign", "normal", "sick")) == (), "two healthy ones: not plain which is meant"


# --- C-NMC 2019 -------------------------------------------------------------------------------------------------------

CELLS = ("fold_0/all/UID_11_10_1_all.bmp", "fold_0/hem/UID_H7_1_2_hem.bmp", "fold_1/hem/UID_h7_3_1_hem.bmp")
PRELIMINARY = "C-NMC_test_prelim_phase_data"
TABLE = "Patient_ID,new_names,labels\nUID_57_29_1_all.bmp,1.bmp,1\nUID_H40_2_1_hem.bmp,2.bmp,0\n"


@pytest.mark.parametrize("prefix", ["", "C-NMC_training_data/", "C-NMC_Leukemia/training_data/"])
def test_folds_at_any_depth(tmp_path: Path, prefix: str) -> None:
    root = put(tmp_path, *(prefix + cell for cell in CELLS))
    dataset = load_dataset(root)
    assert (dataset.layout, dataset.labels, unit(dataset)) == ("cnmc", ("all", "hem"), "cell")
    # H7 and h7 count as one person: parting one over two sides would be the worse mistake.
    assert [sample.subject for sample in dataset.samples] == ["11", "H7", "H7"]
    assert [sample.path for sample in dataset.samples] == [prefix + cell for cell in CELLS]
    assert dataset.problems == ()


def test_one_fold_by_itself(tmp_path: Path) -> None:
    put(tmp_path, *CELLS)
    dataset = load_dataset(tmp_path / "fold_0")
    assert dataset.layout == "cnmc"
    assert [sample.subject for sample in dataset.samples] == ["11", "H7"]


def test_cells_that_contradict_themselves_are_skipped(tmp_path: Path) -> None:
    put(tmp_path, *CELLS, "fold_0/all/UID_1_1_1_hem.bmp", "fold_0/all/cell.bmp", "fold_0/all/Thumbs.db")
    dataset = load_dataset(tmp_path)
    assert len(dataset.samples) == len(CELLS)
    assert {problem.path: problem.reason.split(" (")[0] for problem in dataset.problems} == {
        "fold_0/all/UID_1_1_1_hem.bmp": "the name says hem, the folder says all",
        "fold_0/all/cell.bmp": "no subject in the name",
        "fold_0/all/Thumbs.db": "not an image suffix",
    }


@pytest.mark.parametrize(
    ("folder", "table"),
    [
        (PRELIMINARY, f"{PRELIMINARY}/labels.csv"),
        (PRELIMINARY, f"{PRELIMINARY}_labels.csv"),
        (PRELIMINARY, "labels/truth.csv"),
        (f"validation_data/{PRELIMINARY}", f"validation_data/{PRELIMINARY}_labels.csv"),
        (f"{PRELIMINARY}/{PRELIMINARY}", "truth.csv"),
    ],
)
def test_the_preliminary_test_set_takes_labels_and_subjects_from_its_csv(
    tmp_path: Path, folder: str, table: str
) -> None:
    put(tmp_path, *CELLS, f"{folder}/1.bmp", f"{folder}/2.bmp", table, "other.csv")
    (tmp_path / table).write_text(TABLE)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "another.csv").write_text("x" * 200_000)  # more than Python's csv takes for a field
    (tmp_path / "a folder.csv").mkdir()
    dataset = load_dataset(tmp_path)
    assert dataset.independent == (
        Sample(f"{folder}/1.bmp", "all", "57"),
        Sample(f"{folder}/2.bmp", "hem", "H40"),
    )
    assert len(dataset.samples) == len(CELLS)
    (note,) = independent_notes(dataset)
    assert "2 labelled images kept out of the split, as an independent test set: edgeall evaluate RUN --data" in note
    assert shlex.split(note)[-1] == str(tmp_path / folder)
    assert dataset.problems == ()


def test_the_preliminary_test_set_by_itself(tmp_path: Path) -> None:
    put(tmp_path, f"{PRELIMINARY}/1.bmp", f"{PRELIMINARY}/2.bmp", "labels.csv")
    (tmp_path / "labels.csv").write_text(TABLE)
    assert paths(tmp_path / PRELIMINARY) == [("1.bmp", "all", "57"), ("2.bmp", "hem", "H40")]


def test_the_preliminary_test_set_and_its_csv_must_match(tmp_path: Path) -> None:
    put(tmp_path, *CELLS, f"{PRELIMINARY}/1.bmp", f"{PRELIMINARY}/3.bmp")
    (tmp_path / "labels.csv").write_text(TABLE)
    assert load_dataset(tmp_path).problems == (
        Problem(f"{PRELIMINARY}/2.bmp", "listed in labels.csv, but not there"),
        Problem(f"{PRELIMINARY}/3.bmp", "not listed in labels.csv"),
    )
    (tmp_path / "labels.csv").unlink()
    dataset = load_dataset(tmp_path)
    assert len(dataset.samples) == len(CELLS)
    assert "2 images ignored: no CSV with the columns" in dataset.problems[0].reason
    with pytest.raises(DataError, match="no labelled cell"):
        load_dataset(tmp_path / PRELIMINARY)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("UID_57_29_1_all.bmp,3.bmp,0", "line 4: .*do not fit together"),
        ("UID_57_29_1_all.bmp,3.bmp,2", "line 4: .*do not fit together"),
        ("somebody,3.bmp,1", "line 4: .*do not fit together"),
        ("UID_57_29_1_all.bmp,1.bmp,1", "line 4: 1.bmp is listed twice"),
        ("UID_57_29_1_all.bmp", "line 4: not 3 fields"),
    ],
)
def test_a_bad_line_of_the_preliminary_csv(tmp_path: Path, row: str, message: str) -> None:
    put(tmp_path, *CELLS, f"{PRELIMINARY}/1.bmp")
    (tmp_path / "labels.csv").write_text(TABLE + row + "\n")
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path)


def test_the_final_test_set_is_named_as_ignored(tmp_path: Path) -> None:
    put(tmp_path, *CELLS, "testing_data/C-NMC_test_final_phase_data/1.bmp", "spare/2.bmp", "spare/3.bmp")
    assert load_dataset(tmp_path).problems == (
        Problem("spare", "2 images ignored: no labels known"),
        Problem(
            "testing_data/C-NMC_test_final_phase_data", "1 images ignored: the final test set comes without labels"
        ),
    )


def test_the_real_sample(test_data: Path) -> None:
    dataset = load_dataset(test_data / "cnmc")
    assert (dataset.layout, len(dataset.samples), dataset.problems) == ("cnmc", 32, ())
    assert {sample.subject for sample in dataset.samples} >= {"11", "H22"}
    fields = load_dataset(test_data / "all4")
    assert (fields.layout, len(fields.samples), fields.problems) == ("folders", 2606, ())


# --- CSV manifest -----------------------------------------------------------------------------------------------------


def manifest(root: Path, text: str) -> Path:
    put(root, "img/1.png", "img/2.png", "img/3.txt")
    table = root / "data.csv"
    table.write_text(text)
    return table


def test_a_manifest(tmp_path: Path) -> None:
    text = "\ufefflabel,path,subject\nPro,img/1.png,p1\n\nBenign,./img/2.png,\n"
    dataset = load_dataset(manifest(tmp_path, text))
    assert (dataset.layout, dataset.root, dataset.labels) == ("manifest", tmp_path, ("Benign", "Pro"))
    assert dataset.samples == (Sample("img/1.png", "Pro", "p1"), Sample("img/2.png", "Benign"))


def test_a_manifest_names_what_is_not_there(tmp_path: Path) -> None:
    dataset = load_dataset(manifest(tmp_path, "path,label\nimg/1.png,a\nimg/9.png,b\nimg/3.txt,b\n"))
    assert dataset.problems == (
        Problem("img/3.txt", "not an image suffix (.txt)"),
        Problem("img/9.png", "no such file (line 3)"),
    )


def test_a_manifest_s_label_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: a line break in the label 'a\\nb'"):
        load_dataset(manifest(tmp_path, 'path,label\nimg/1.png,"a\nb"\nimg/2.png,c\n'))
    with pytest.raises(DataError, match=r"class 'a\\x07b' has") as caught:
        load_dataset(manifest(tmp_path, "path,label\nimg/1.png,a\x07b\nimg/2.png,c\n"))
    assert caught.value.hint == "change the label"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column label, path"),
        ("path,klass\nimg/1.png,a\n", "line 1: no column label"),
        ("path,label,age\nimg/1.png,a,3\n", "line 1: unknown or repeated columns"),
        ("path,label,label\nimg/1.png,a,a\n", "line 1: unknown or repeated columns"),
        ("path,label\nimg/1.png,a\nimg/1.png,a\n", "line 3: img/1.png is already on line 2"),
        ("path,label\nimg/1.png,a\nimg/../img/1.png,b\n", "line 3: img/1.png is already on line 2"),
        ("path,label\nimg/1.png,\n", "line 2: empty label"),
        ("path,label\n,a\n", "line 2: empty path"),
        ("path,label\nimg/1.png,a\nimg/2.png\n", "line 3: not 2 fields"),
        ("path,label\nimg/1.png,a,b\n", "line 2: not 2 fields"),
        ("path,label\n/etc/passwd,a\n", "line 2: /etc/passwd lies outside"),
        ("path,label\nimg/../../x.png,a\n", "line 2: .* lies outside"),
        ("path,label\nC:/x.png,a\n", "line 2: .* lies outside"),
        (
            "path,label\nimg/8.png,a\nimg/9.png,a\n",
            r"none of its 2 lines names an image.*img/8.png.*no such file .line 2",
        ),
        ("path,label,side\nimg/1.png,a,\n", "line 2: empty side"),
        ("path,label,side\nimg/1.png,a,train\nimg/2.png,a,dev\n", "line 3: unknown side 'dev'"),
        ("path,label,side\nimg/1.png,a,train\nimg/2.png,a,val\n", "the column side names no test image"),
        ("path,label,split\nimg/1.png,a,train\n", "line 1: unknown or repeated columns"),
        ('path,label,subject\nimg/1.png,a,"p\nq"\n', r"line 3: a line break in the subject 'p.nq'"),
        ("path,label\nimg\\..\\..\\x.png,a\n", "line 2: .* lies outside"),
        ("path,label\nC:\\img\\1.png,a\n", "line 2: .* lies outside .*: it names the drive C:"),
        ('path,label\n"img/1.png,a\n', "can't be read as CSV"),
        (f"path,label\nimg/1.png,{'a' * 200_000}\n", "can't be read as CSV .field larger than"),
        (f"{'a' * 200_000}\nimg/1.png,a\n", "can't be read as CSV .field larger than"),
        (f"path,label\n{'a' * 5000}.png,a\n", "line 2: invalid path .File name too long"),
    ],
)
def test_a_bad_manifest_says_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(manifest(tmp_path, text))
    assert caught.value.message.startswith(str(tmp_path / "data.csv"))
    assert caught.value.hint


def test_a_manifest_that_is_not_text(tmp_path: Path) -> None:
    table = tmp_path / "data.csv"
    table.write_bytes(b"path,label\n\xff\xfe\x00,a\n")
    with pytest.raises(DataError, match="can't be read as CSV"):
        load_dataset(table)


def test_a_manifest_of_windows(tmp_path: Path) -> None:
    """Each line may use either separator: some tools write both."""
    text = "path,label\nimg\\1.png,a\n.\\img\\..\\img\\2.png,b\n"
    assert paths(manifest(tmp_path, text)) == [("img/1.png", "a", None), ("img/2.png", "b", None)]
    mixed = manifest(tmp_path, "path,label\nimg/1.png,a\nimg\\2.png,b\n")
    assert paths(mixed) == [("img/1.png", "a", None), ("img/2.png", "b", None)]
    with pytest.raises(DataError, match=r"line 3: img/1\.png is already on line 2"):
        load_dataset(manifest(tmp_path, "path,label\nimg/1.png,a\nimg\\1.png,b\n"))


@pytest.mark.skipif(os.name == "nt", reason="no file name holds a backslash there")
def test_a_backslash_in_a_file_name_is_kept(tmp_path: Path) -> None:
    put(tmp_path, "img\\1.png")
    assert paths(manifest(tmp_path, "path,label\nimg\\1.png,a\n")) == [("img\\1.png", "a", None)]


def test_absolute_paths_inside_the_manifest_s_folder_are_taken(tmp_path: Path) -> None:
    root = tmp_path / "data"
    table = manifest(root, f"path,label\n{root}/img/1.png,a\nimg/2.png,b\n")
    assert paths(table) == [("img/1.png", "a", None), ("img/2.png", "b", None)]
    (tmp_path / "link").symlink_to(root)
    assert paths(tmp_path / "link" / "data.csv") == paths(table), "the folder may be given by another name"
    table.write_text(f"path,label\n{tmp_path}/link/img/1.png,a\nimg/2.png,b\n")
    assert paths(table) == [("img/1.png", "a", None), ("img/2.png", "b", None)]
    put(tmp_path, "data-2/1.png")
    table.write_text(f"path,label\n{tmp_path}/data-2/1.png,a\n")
    with pytest.raises(DataError, match=r"line 2: .*data-2/1\.png lies outside"):
        load_dataset(table)


def test_a_line_break_in_a_path_is_named(tmp_path: Path) -> None:
    dataset = load_dataset(manifest(tmp_path, 'path,label\nimg/1.png,a\n"img/2\n.png",b\n'))
    assert dataset.problems == (Problem("img/2\n.png", "no such file (line 4, and its path holds a line break)"),)


# --- sets that come split ---------------------------------------------------------------------------------------------


def test_a_manifest_with_subsets(tmp_path: Path) -> None:
    text = "path,label,side\nimg/1.png,a,Train\nimg/2.png,a,TEST\nimg/4.png,a,val\nimg/5.png,a,validation\n"
    put(tmp_path, "img/4.png", "img/5.png")
    sides = {sample.path: sample.side for sample in load_dataset(manifest(tmp_path, text)).samples}
    assert sides == {
        "img/1.png": "train",
        "img/2.png": "test",
        "img/4.png": "validation",
        "img/5.png": "validation",
    }


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "Test", "Val"), ("training", "validation", "testing")])
def test_folders_with_subset_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    put(tmp_path, *(f"{name}/{label}/{n}.png" for name in names for label in "ab" for n in (1, 2)))
    put(tmp_path, f"{names[0]}/stray.png", "readme.txt")
    dataset = load_dataset(tmp_path)
    assert dataset.labels == ("a", "b") and len(dataset.samples) == 4 * len(names)
    assert all(GIVEN_SUBSETS[sample.path.partition("/")[0].lower()] == sample.side for sample in dataset.samples)
    assert all(sample.path.split("/")[1] == sample.label for sample in dataset.samples)
    assert dataset.problems == (Problem(f"{names[0]}/stray.png", "lies in no class folder"),)


def test_folders_are_not_subsets_if_only_some_have_subset_names(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{label}/{n}.png" for name in ("train", "test", "more") for label in "ab" for n in (1, 2)))
    with pytest.raises(DataError, match="one level further down"):
        load_dataset(tmp_path)


def test_classes_may_have_subset_names(tmp_path: Path) -> None:
    put(tmp_path, "train/1.png", "test/1.png")
    dataset = load_dataset(tmp_path)
    assert dataset.labels == ("test", "train") and {sample.side for sample in dataset.samples} == {None}


def test_invalid_subset_folders(tmp_path: Path) -> None:
    put(tmp_path / "no-test", "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png")
    with pytest.raises(DataError, match="train and val, without a test subset"):
        load_dataset(tmp_path / "no-test")
    put(tmp_path / "twice", *(f"{side}/{x}/1.png" for side in ("train", "test", "val", "valid") for x in "ab"))
    with pytest.raises(DataError, match="two folders for one subset"):
        load_dataset(tmp_path / "twice")
