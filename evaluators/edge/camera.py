"""Pictures of a camera, by whatever program takes one here and writes it to its standard output:

rpicam-still -n -t 1 -e jpg -o -                                   a Raspberry Pi's own camera
ffmpeg -loglevel error -f v4l2 -i /dev/video0 -frames:v 1 -f mjpeg -    a USB camera
"""

from __future__ import annotations

import io
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from typing import Optional

from PIL import Image

from .picture import PictureError, open_upright

_SHOT_S = 30.0


@dataclass(frozen=True)
class Camera:
    """A camera.

    Attributes:
        command: takes one picture and writes it, encoded, to standard output.
        frames: how many to take; None goes on until somebody stops it.
    """

    command: str
    frames: Optional[int] = None

    def check(self) -> None:
        """Raise ValueError for a command that can give no picture, however often it is run."""
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise ValueError(f"--camera {self.command!r}: {error}") from None
        if not words or shutil.which(words[0]) is None:
            raise ValueError(f"--camera {self.command!r}: there is no such program here; is it installed?")

    def shot(self) -> Image.Image:
        """A picture taken now. Raises PictureError where there is none, with what the program said."""
        try:
            done = subprocess.run(shlex.split(self.command), capture_output=True, timeout=_SHOT_S)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise PictureError(f"--camera {self.command!r}: {error}") from None
        if done.returncode or not done.stdout:
            said = done.stderr.decode("utf-8", "replace").strip()[-300:] or "nothing on standard output"
            raise PictureError(f"--camera {self.command!r} ended with {done.returncode}: {said}")
        return open_upright(io.BytesIO(done.stdout))


def camera_of(command: Optional[str], frames: Optional[int]) -> Optional[Camera]:
    """The camera behind a command, if there is one. Raises ValueError for frames of none."""
    if command is not None:
        return Camera(command, frames)
    if frames is not None:
        raise ValueError(f"--frames {frames} given, but nothing takes them; add --camera COMMAND, or leave it out")
    return None
