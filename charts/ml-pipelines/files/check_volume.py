"""Whether pods of this user can write on a volume; only the standard library.

Mounting it binds its claim. Arguments: the directory that they write in, and the volume's root.
"""

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path


def owner(path):
    found = path.stat()
    return f"belongs to {found.st_uid}:{found.st_gid} with mode {found.st_mode & 0o7777:04o}"


def main(directory, root):
    try:
        with tempfile.NamedTemporaryFile(prefix="_check-", dir=directory) as file:
            file.write(b"written at the install")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        groups = ", ".join(map(str, sorted({os.getgid(), *os.getgroups()})))
        raise SystemExit(
            f"ERROR: {error.strerror}: the volume's root {owner(root)}, a directory that the"
            f" kubelet makes there {owner(directory)}; user {os.getuid()} of the groups {groups}"
            " must be able to write. Make the root's mode 0777, or take a storage class whose"
            " driver heeds fsGroup: see step 1 of docs/production.md"
        ) from error
    finally:
        # The kubelet has made it, with the root's mode of that moment; the next try gets a new one.
        if directory != root:
            with suppress(OSError):
                (root / "_check").rmdir()
    print(f"user {os.getuid()} can write on the volume, whose root {owner(root)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
