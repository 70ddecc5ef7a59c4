"""The class label of every image: from file names, folders, a CSV file or EDM's dataset.json."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from guided_diffusion.data.image_files import LABEL_FILE, ImageFiles
from guided_diffusion.errors import InputError, counted, some_of
from guided_diffusion.io.reading import decoding, open_readable, parse_json

RULES = ("auto", "folder", "filename")
HELP = (
    "source of the class labels: auto, folder (the first below the data folder), filename (up to the first _, as "
    'upstream), or a FILE.csv with lines "file,label"'
)
_REMEDY = 'give --labels FILE.csv with lines "file,label"'
# Names that cameras, phones and programs give files and folders: a word with or without digits, a date, or nothing.
_NO_CLASS = re.compile(
    r"(?:(?:img|imag|(?:image|photo|picture|frame|screenshot)s?|dscn?|dscf|dcim|pxl|mvimg|mvi|mov|cimg|sam|pict?|foto"
    r"|gopr|g[phx]|dji|hpim|kic|wp|win|vid|video|burst|pano|scan|screen|snapshot|capture|sample|fb|received"
    r"|train|training|val|valid|validation|test|testing|\d{3}(?:apple|canon|msdcf|_?pana))"
    r"(?:[-\s.]*\d)*(?:-?wa\d+)?"
    r"|(?:19|20)\d\d(?:[-.\s][01]\d|[01]\d[0-3]\d)(?:[-.\sT]*\d)*)?",
    re.IGNORECASE,
)
_NUMBERED = {  # of at most 63 bits
    True: re.compile(r"(?P<label>\d{1,18})_(?P<index>\d{1,18})", re.ASCII),
    False: re.compile(r"(?P<index>\d{1,18})(?P<label>)", re.ASCII),
}


@dataclass(frozen=True)
class Labels:
    """One label per image, in the images' order.

    source: where they were read, such as "file name". remark: the reason, for the log; "" for none. warnings: one line
    for each thing that a user must know about them.
    """

    labels: tuple[str, ...]
    source: str
    remark: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The classes by number: sorted as upstream does, by value where a file lists numbers."""
        found = set(self.labels)
        numbers = all(label.isascii() and label.isdecimal() and len(label) < 19 for label in found)
        by_value = numbers and self.source not in _BY_NAME
        return sorted(found, key=int) if by_value else sorted(found)

    def number(self, files: ImageFiles, class_names: Sequence[str] | None = None) -> list[int]:
        """Return each image's class number among these classes; ``InputError`` for any other label."""
        names = self.names if class_names is None else class_names
        numbers = {name: number for number, name in enumerate(names)}
        for name, label in zip(files.names, self.labels, strict=True):
            if label not in numbers:
                raise InputError(
                    f"{files.path(name)}: its label {label!r} is none of the {counted(len(names), 'known classes')} "
                    f"({some_of(names)})"
                )
        return [numbers[label] for label in self.labels]

    def describe(self) -> str:
        """Return the line that every run prints: the number of images, of classes, and of images per class."""
        counts = Counter(self.labels)
        shown = self.names if len(counts) <= 20 else self.names[:5]
        table = ", ".join(f"{name} {counts[name]}" for name in shown) + (", ..." if len(shown) < len(counts) else "")
        fewest, most = min(counts.values()), max(counts.values())
        images, classes = counted(len(self.labels), "images"), counted(len(counts), "classes")
        found = f"{images}, {classes} by {self.source}: {table} (smallest {fewest}, largest {most})"
        return f"{found}; {self.remark}" if self.remark else found

    def digest(self) -> str:
        """Return a digest of all labels in order, for a run's flags."""
        whole = "\n".join(self.labels).encode(errors="surrogateescape")
        return f"SHA-256 {hashlib.sha256(whole).hexdigest()[:12]}"


def read_labels(files: ImageFiles, rule: str = "auto", class_names: Sequence[str] | None = None) -> Labels:
    """Read the label of every image.

    ``auto`` takes dataset.json where it exists; else, for N images, the file names' labels if every name has a "_" and
    there are 2 to N/2 labels that are not all typical of cameras, else the folders' within the same bounds. With
    ``class_names`` it takes the source that gives these names most often; without, unusual labels cause warnings.

    :param rule: auto, folder, filename, or the path of a CSV file.
    :raises InputError: the rule cannot be applied, or auto finds no labels; the line names the remedies.
    """
    found = _read_labels(files, rule, class_names)
    return with_warnings(files, found) if class_names is None else found


def with_warnings(files: ImageFiles, found: Labels) -> Labels:
    """Return the labels with warnings of what is unusual about them."""
    return replace(found, warnings=(*found.warnings, *_oddities(files.title, found.labels, found.source in _BY_NAME)))


def _read_labels(files: ImageFiles, rule: str, class_names: Sequence[str] | None) -> Labels:
    if rule == "filename":
        return Labels(_by_name(files), "file name")
    if rule == "folder":
        labels = _by_folder(files)
        if labels is None:
            flat = [name for name in files.names if "/" not in name]
            raise InputError(
                f"{files.title}: --labels folder: {len(flat)} of {len(files)} images are in no folder, such as "
                f"{flat[0]}; expected every image in a folder of its class; or {_REMEDY}"
            )
        return Labels(labels, "folder")
    if rule != "auto":
        return _read_csv(files, rule)
    listed = _read_label_file(files)
    if class_names is None:
        return listed or _choose(files)
    choices = [listed, Labels(_by_name(files), "file name")]
    if (labels := _by_folder(files)) is not None:
        choices.append(Labels(labels, "folder"))
    known = set(class_names)
    return max(filter(None, choices), key=lambda found: sum(label in known for label in found.labels))


def numbered(names: Iterable[str], labelled: bool) -> list[tuple[int, int]] | None:
    """Return (class number, index) of files called LABEL_INDEX, as samples are, or INDEX (class 0) if not ``labelled``.

    None unless all are called so.
    """
    found = [_NUMBERED[labelled].fullmatch(_base(name).rpartition(".")[0]) for name in names]
    return [(int(match["label"] or 0), int(match["index"])) for match in found] if all(found) else None


def read_sample_labels(files: ImageFiles) -> list[int] | None:
    """Return the class numbers in file names LABEL_INDEX; None unless all are called so.

    The files of a folder are sorted by INDEX first, the order of the samples.
    """
    found = numbered(files.names, labelled=True)
    if found and files.is_folder:
        order = sorted(zip(found, files.names, strict=True), key=lambda one: one[0][1])
        found, files.names = [number for number, _ in order], [name for _, name in order]
    return found and [label for label, _ in found]


_BY_NAME = ("file name", "folder")


def _by_name(files: ImageFiles) -> tuple[str, ...]:
    return tuple(_base(name).partition("_")[0] for name in files.names)


def _by_folder(files: ImageFiles) -> tuple[str, ...] | None:
    """Return each image's first folder, below those shared by all; None where an image is in no folder."""
    folders = [name.split("/")[:-1] for name in files.names]
    while folders and all(len(path) > 1 and path[0] == folders[0][0] for path in folders):
        folders = [path[1:] for path in folders]
    return tuple(path[0] for path in folders) if all(folders) else None


def _choose(files: ImageFiles) -> Labels:
    """Return the labels that auto takes from file names or folders."""
    count, most = len(files), len(files) // 2
    names, folders = _by_name(files), _by_folder(files)
    bare = sum("_" not in _base(name) for name in files.names)
    names_fit = not bare and 2 <= len(set(names)) <= most
    folders_fit = folders is not None and 2 <= len(set(folders)) <= most
    folders_tell = folders_fit and not _is_no_class(folders)
    last = tuple(name.split("/")[-2] for name in files.names) if folders_fit else ()
    if names_fit and not _is_no_class(names):
        if folders_tell and folders != names:
            warning = (
                f"{files.title}: file names give {_some(names)}, folders {_some(folders)}; taking the file names', as "
                "upstream does; --labels folder takes the others"
            )
            return Labels(names, "file name", warnings=(warning,))
        return Labels(names, "file name")
    refines = len(set(zip(last, folders or (), strict=False))) == len(set(last))  # each below a single first folder
    if folders_fit and last != folders and 2 <= len(set(last)) <= most and not refines:
        raise InputError(
            f"{files.title}: folders lie in folders: the first ones give {_some(folders)}, the last {_some(last)}; "
            "--labels folder takes the first, as ImageFolder of torchvision does; else begin with a folder further in, "
            f"or {_REMEDY}"
        )
    if folders_tell:
        return Labels(folders, "folder", f"file names give {_some(names)}" if names_fit else "")
    lacking = f" ({bare} of {count} have no _)" if bare else ""
    by_folder = "there is no folder for each class" if folders is None else f"folders {_some(folders)}"
    rules = ["filename"] * (bare < count) + ["folder"] * (folders is not None)
    anyway = f"--labels {' or --labels '.join(rules)} takes that rule whatever the number, " if rules else ""
    raise InputError(
        f"{files.title}: found no classes in {counted(count, 'images')}: file names give {_some(names)}{lacking}, "
        f'{by_folder}; expected 2 to {most}. {anyway}--labels FILE.csv reads lines "file,label"'
    )


def _is_no_class(labels: Iterable[str]) -> bool:
    """Return whether all are names that cameras and programs write, which are no classes."""
    return all(map(_NO_CLASS.fullmatch, set(labels)))


def _some(labels: Sequence[str]) -> str:
    found = sorted(set(labels))
    told = ": names that cameras and programs write" if _is_no_class(found) else ""
    shown = some_of([label or '""' for label in found])
    return f"{counted(len(found), 'classes')} ({shown}{told})"


def _oddities(title: str, labels: Sequence[str], by_name: bool) -> list[str]:
    """Return warnings of classes with one image, of look-alike labels and, if `by_name`, of camera names."""
    counts, alike = Counter(labels), defaultdict(list)
    for label in sorted(counts):
        alike["".join(unicodedata.normalize("NFC", label).casefold().split())].append(label)
    single = [label for label in sorted(counts) if counts[label] == 1]
    same = [" and ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    told = []
    if by_name and _is_no_class(labels):
        told.append(
            f"{title}: {_some(labels)}: they count as classes; where they are none, choose another of --labels auto, "
            f"folder and filename, or {_REMEDY}"
        )
    if single:
        told.append(
            f"{title}: {len(single)} of {len(counts)} classes have a single image ({some_of(single)}); they count as "
            f"classes; where they are none, choose another of --labels auto, folder and filename, or {_REMEDY}"
        )
    if same:
        told.append(
            f"{title}: labels differ by case, white space or the coding of accents alone ({some_of(same)}); they count "
            f"as different classes; where they are one, rename files or folders, or {_REMEDY}"
        )
    return told


def _read_label_file(files: ImageFiles) -> Labels | None:
    """Read EDM's dataset.json, {"labels": [["a/0.png", 3], ...]}; None where it has no labels."""
    data = files.read_label_file()
    if data is None:
        return None
    title = f"{files.title}: {LABEL_FILE}"
    pairs = parse_json(data, title).get("labels")
    if pairs is None:
        return None
    wanted = 'expected "labels": [["file", number], ...]'
    if not isinstance(pairs, list):
        raise InputError(f"{title}: {wanted}, found a {type(pairs).__name__}")
    for pair in pairs:
        if not (isinstance(pair, list) and list(map(type, pair)) == [str, int] and pair[1] >= 0):
            raise InputError(f"{title}: {wanted}, found {str(pair)[:60]}")
    return _look_up(files, {name: str(label) for name, label in pairs}, title, LABEL_FILE)


def _read_csv(files: ImageFiles, path: str) -> Labels:
    title = f"--labels {path}"
    if not path.lower().endswith((".csv", ".tsv", ".txt")):
        raise InputError(f"{title}: expected one of {', '.join(RULES)}, or a FILE.csv")
    with open_readable(title, path) as file:
        text = _decode(file.read(), title)
    with decoding(title, "no CSV file", InputError):
        readings = [[row for row in csv.reader(io.StringIO(text), delimiter=mark) if row] for mark in ",;\t"]
    rows = max(readings, key=lambda rows: sum(len(row) == 2 for row in rows))  # ties: commas
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise InputError(f'{title}: row {number} has {len(row)} columns, expected two: "file,label"')
    rows = [[cell.strip() for cell in row] for row in rows]
    known = {key for name in files.names for key in _paths(files, name)}
    first, second = (sum(_plain(row[column]) in known for row in rows) for column in (0, 1))
    if second > first:
        raise InputError(f"{title}: the columns look swapped: expected file,label, found {','.join(rows[-1])}")
    table: dict[str, str] = {}
    for name, label in rows:
        if not label:
            raise InputError(f"{title}: gives {name} no label, expected one for every image")
        for key in {name, _plain(name)}:
            if table.setdefault(key, label) != label:
                raise InputError(f"{title}: gives {name} two labels, {table[key]!r} and {label!r}")
    return _look_up(files, table, title, path)


def _decode(data: bytes, title: str) -> str:
    """Decode a file in UTF-8, or in UTF-16 with a byte order mark, to text with "\\n" line ends."""
    try:
        text = data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{title}: line {line} is not in UTF-8, expected a CSV file saved in UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _look_up(files: ImageFiles, table: dict[str, str], title: str, source: str) -> Labels:
    """Look up each image's label in a table of paths, names, or names without suffix."""
    found = []
    for name in files.names:
        keys = (*_paths(files, name), _base(name).rpartition(".")[0])
        found.append(next((key for key in keys if key in table), None))
    missing = [name for name, key in zip(files.names, found, strict=True) if key is None]
    if missing:
        raise InputError(
            f"{title}: has no label for {len(missing)} of {counted(len(found), 'images')}, such as "
            f"{files.path(missing[0])}"
        )
    shared = [key for key, count in Counter(found).items() if count > 1]
    warning = (
        f"{title}: {len(shared)} of its names are those of several images ({some_of(shared)}), which get the same "
        f"label; expected paths such as {files.names[0]}"
    )
    return Labels(tuple(table[key] for key in found), source, warnings=(warning,) if shared else ())


def _paths(files: ImageFiles, name: str) -> tuple[str, str, str]:
    """Return the ways in which a list may name an image: path in the folder, whole path, file name."""
    return name, _plain(files.path(name)), _base(name)


def _plain(path: str) -> str:
    return path.replace("\\", "/").removeprefix("./")


def _base(name: str) -> str:
    return name.rpartition("/")[2]
