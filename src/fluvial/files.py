"""Files that are whole or not there."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def write_atomic(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that every reader, and every crash, finds either the old content or the new one, never a part.

    The content goes to a hidden file in the same folder, is forced to the disk, and then takes the place of `path` in one step. On any
    failure, an interrupt included, the hidden file is removed and an existing file stays as it was. A device or pipe is written directly.

    Args:
        path: Where to; a link is followed.
        content: The bytes, or a function that writes them into the binary file it is handed.

    Raises:
        OSError: If the file cannot be written; the message names the path and the reason (a full disk by that name).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(Path(folder, "a.txt"), b"all of it")
        ...     Path(folder, "a.txt").read_text(), len(os.listdir(folder))
        ('all of it', 1)
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"cannot write {path}: it is a folder; add the name of a file")
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"cannot write {path}: there is no folder {target.parent}; create it first")
    if target.exists() and not target.is_file():
        with open(target, "wb") as file:
            _fill(file, content)
        return
    # The name ends unlike any format, so that a pattern such as *.npz never picks up a file in the making.
    temporary = target.with_name(f".{target.name[:180]}.{secrets.token_hex(6)}.part")
    try:
        with open(temporary, "xb") as file:
            _fill(file, content)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException as error:
        reason = _reason(error, temporary, target)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if reason is None:
            raise
        number, what = reason
        kept = "the previous file is untouched" if target.exists() else "nothing was left behind"
        text = f"disk full while writing {path}; {kept}" if number in _FULL else f"cannot write {path}: {what}; {kept}"
        raise OSError(number, text) from error
    _sync_folder(target.parent)


def _fill(file: BinaryIO, content: bytes | Callable[[BinaryIO], object]) -> None:
    if isinstance(content, bytes):
        file.write(content)
    else:
        content(file)


def _reason(error: BaseException, temporary: Path, target: Path) -> tuple[int, str] | None:
    """Error number and text where writing this file failed; None where something else did."""
    if isinstance(error, OSError):
        if error.filename is not None and Path(error.filename) not in (temporary, target):
            return None
        if error.errno is not None:
            return error.errno, error.strerror or str(error)
        # numpy.save says only how many numbers it could write.
        number = errno.ENOSPC if shutil.disk_usage(target.parent).free < 2**16 else errno.EIO
        return number, str(error)
    # torch.save turns a failed write into a RuntimeError with the OSError behind it.
    behind = error.__cause__ or error.__context__
    if isinstance(error, RuntimeError) and isinstance(behind, OSError) and behind.errno is not None and behind.filename is None:
        return behind.errno, behind.strerror or str(behind)
    return None


def _sync_folder(folder: Path) -> None:
    # Makes the new name survive a power cut; not every system can open a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
