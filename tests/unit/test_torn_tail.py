"""A file of answers whose writer was killed at any byte."""

from __future__ import annotations

import gzip
import resource
import signal
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from batch_files import OPENED

from promptmill import InvalidRequestError
from promptmill.batch.answer_file import AnswerFile
from promptmill.batch.compression import codec_of
from promptmill.batch.torn_tail import mend

LINES = [b'{"id":"line-%d","text":"%s","promptmill":{}}\n' % (number, b"word " * number) for number in range(1, 8)]
SUFFIXES = ["", ".gz", ".zst"]


def written(path: Path, lines: list[bytes], monkeypatch: pytest.MonkeyPatch, member_bytes: int = 60) -> list[int]:
    """Writes the lines; returns the file's size after each."""
    monkeypatch.setattr("promptmill.batch.draft.MEMBER_BYTES", member_bytes)
    file, sizes = AnswerFile(path), []
    for line in lines:
        file.append(line)
        sizes.append(path.stat().st_size)
    file.close()
    return sizes


def content(path: Path) -> bytes:
    """As the standard tools read it."""
    with OPENED.get(path.suffix, open)(path, "rb") as file:
        return bytes(file.read())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("member_bytes", [60, 10_000])
def test_cut_at_any_byte_a_file_has_every_line_that_was_whole_and_takes_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, member_bytes: int
) -> None:
    path = tmp_path / f"out.jsonl{suffix}"
    sizes = written(path, LINES, monkeypatch, member_bytes)
    whole = path.read_bytes()
    assert content(path) == b"".join(LINES)
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        file = AnswerFile(path)
        kept = [line for _, line in file.lines()]
        # A whole line may be lost only with the end of the member that it ends.
        safe = sum(after <= size for after in sizes)
        assert [line["id"] for line in kept] == [f"line-{number + 1}" for number in range(len(kept))]
        assert safe <= len(kept) <= safe + 1, size
        for line in LINES[len(kept) :]:
            file.append(line)
        file.close()
        assert content(path) == b"".join(LINES), size


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_lines_can_be_read_while_the_file_is_open(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.jsonl{suffix}"
    file = AnswerFile(path)
    for number, line in enumerate(LINES, start=1):
        file.append(line)
        copy = tmp_path / f"copy.jsonl{suffix}"
        copy.write_bytes(path.read_bytes())
        reader = AnswerFile(copy)
        assert len(list(reader.lines())) == number
        reader.close()
    file.close()


@pytest.mark.parametrize("tail", [b'{"id":"x"\0\0\0', b"\0" * 5000, b'{"i', b'{"id":' + b"x" * 200_000])
def test_half_a_line_or_what_a_loss_of_power_leaves_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(LINES[0] + tail)
    AnswerFile(path).close()
    assert path.read_bytes() == LINES[0]


STRANGE = [
    b"older answers",
    b'{"name": "x"}',
    LINES[0] + b"a,b,c",
    b'{"id":1,"prompt":"x"}',  # as other tools write it, without a line break at the end
    b'{"id":1,"prompt":"x"}\n{"id":2,"prompt":"y"}',
    b'{"id":1,"prompt":"x"}\n{"id":2,"pro',
]


@pytest.mark.parametrize("strange", STRANGE)
def test_what_a_batch_did_not_write_is_not_touched(tmp_path: Path, strange: bytes) -> None:
    for suffix in SUFFIXES:
        path = tmp_path / f"out.jsonl{suffix}"
        path.write_bytes(strange)
        with pytest.raises(InvalidRequestError, match=r"did not write|is damaged"):
            AnswerFile(path)
        assert path.read_bytes() == strange


@pytest.mark.parametrize("torn", [b"older answers\n" * 100, b'{"id":1,"prompt":"x"}\n' * 100, b"".join(LINES)])
def test_a_torn_compressed_file_that_a_batch_did_not_write_is_not_touched(tmp_path: Path, torn: bytes) -> None:
    for suffix, compress in ((".gz", gzip.compress), (".zst", zstd.compress)):
        path = tmp_path / f"out.jsonl{suffix}"
        path.write_bytes(written := compress(torn)[:-5])
        with pytest.raises(InvalidRequestError, match="did not write"):
            AnswerFile(path)
        assert path.read_bytes() == written


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("lost", [0, 1, 9])
def test_zeros_that_a_loss_of_power_leaves_are_cut_off(tmp_path: Path, suffix: str, lost: int) -> None:
    path = tmp_path / f"out.jsonl{suffix}"
    for is_closed in (True, False):
        path.unlink(missing_ok=True)
        file = AnswerFile(path)
        for line in LINES:
            file.append(line)
        if is_closed:
            file.close()
        raw = path.read_bytes()
        file.close()
        path.write_bytes(raw[: len(raw) - lost] + bytes(5000))
        AnswerFile(path).close()
        assert content(path) in (b"".join(LINES), b"".join(LINES[:-1]))
        assert lost or content(path) == b"".join(LINES)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_killed_while_it_is_mended_a_file_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"out.jsonl{suffix}"
    file = AnswerFile(path)
    for line in LINES:
        file.append(line)
    torn = path.read_bytes()
    file.close()

    class KilledError(Exception):
        pass

    class Killed(FileIO):
        """Dies after so many bytes are written; cutting off is done at once."""

        left = 0

        def write(self, data: Any) -> int:
            super().write(bytes(data)[: self.left])
            raise KilledError

    for left in range(12):
        path.write_bytes(torn if suffix else torn + b'{"id"')
        with Killed(path, "ab+") as dying, suppress(KilledError):
            dying.left = left
            mend(dying, codec_of(path), path.name)
        AnswerFile(path).close()
        assert content(path) == b"".join(LINES)


def test_a_full_disk_leaves_no_draft_behind(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    file = AnswerFile(path)
    places = [file.append(line) for line in LINES]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="too large"):
            file.rewrite(reversed(places), None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    file.close()
    assert content(path) == b"".join(LINES)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_damaged_compressed_file_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".gz", ".zst"):
        path = tmp_path / f"out.jsonl{suffix}"
        written(path, LINES, monkeypatch)
        damaged = bytearray(path.read_bytes())
        second = damaged.find(damaged[:4], 4)
        damaged[second : second + 20] = b"\xff" * 20
        path.write_bytes(damaged)
        with pytest.raises(InvalidRequestError, match="is damaged after"):
            AnswerFile(path)
        assert path.read_bytes() == damaged


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("after_write", [True, False])
def test_interrupted_in_the_midst_of_a_line_the_file_is_whole_once_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, after_write: bool
) -> None:
    path = tmp_path / f"out.jsonl{suffix}"
    file = AnswerFile(path)
    file.append(LINES[0])
    write = file._write

    def interrupted(data: bytes) -> None:
        if after_write:
            write(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(file, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        file.append(LINES[1])
    file.close()
    assert content(path) == LINES[0]


def test_only_one_may_write_a_file_and_its_death_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    file = AnswerFile(path)
    with pytest.raises(InvalidRequestError, match=r"another `promptmill batch` is writing out\.jsonl"):
        AnswerFile(path)
    file.close()
    AnswerFile(path).close()


def test_a_link_is_followed_and_a_files_mode_is_kept_when_it_is_written_anew(tmp_path: Path) -> None:
    path, link = tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(path)
    path.touch()
    path.chmod(0o640)
    file = AnswerFile(link)
    for line in LINES:
        file.append(line)
    file.rewrite(None, lambda place, fields: fields["id"] == "line-3")
    assert path.read_bytes() == LINES[2]
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert {entry.name for entry in tmp_path.iterdir()} == {"out.jsonl", "link.jsonl"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_link_by_another_kind_of_name_says_how_the_file_is_compressed(tmp_path: Path, suffix: str) -> None:
    link = tmp_path / f"out.jsonl{suffix}"
    link.symlink_to(tmp_path / "blob.gz" if not suffix else tmp_path / "blob")
    for line in LINES[:2]:
        file = AnswerFile(link)
        places = [place for place, _ in file.lines()]
        places.append(file.append(line))
        file.close()
    file = AnswerFile(link)
    file.rewrite(reversed(places), None)
    assert content(link) == LINES[1] + LINES[0]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_lines_are_put_into_another_order(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.jsonl{suffix}"
    file = AnswerFile(path)
    places = [file.append(line) for line in LINES]
    file.rewrite(reversed(places), None)
    assert content(path) == b"".join(reversed(LINES))


def test_a_draft_that_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    draft = tmp_path / ".out.jsonl.promptmill-draft.jsonl"
    draft.write_bytes(b"half")
    AnswerFile(tmp_path / "out.jsonl").close()
    assert not draft.exists()
