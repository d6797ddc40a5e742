import signal
import struct
import time

import pytest

from tools.in_image.container import Command, Container, Image

PT_INTERP = 3


def test_binary_is_all_there_is_and_static(images: dict[str, Image]):
    (layer,) = images["pause"].layers
    assert [path.name for path in layer.iterdir()] == ["pause"]
    elf = (layer / "pause").read_bytes()
    assert elf[:5] == b"\x7fELF\x02"
    # ELF-64: program header table at 0x20, size and number of entries at 0x36.
    start = struct.unpack_from("<Q", elf, 0x20)[0]
    size, count = struct.unpack_from("<HH", elf, 0x36)
    kinds = {struct.unpack_from("<I", elf, start + i * size)[0] for i in range(count)}
    assert PT_INTERP not in kinds


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_pause_waits_and_ends_when_told(images: dict[str, Image], number: signal.Signals):
    with Container(images["pause"], Command()) as container:
        time.sleep(0.5)
        assert container.process.poll() is None
        container.signal(number)
        assert container.wait(5) == (0, "")
