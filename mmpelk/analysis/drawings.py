"""Draw the predictions of a network into images, folders of images and videos."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import mmcv
import numpy as np

from mmpelk.errors import UserError
from mmpelk.fault_tolerance.pictures import refuse_dim

IMAGE_SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'}
VIDEO_SUFFIXES = {'.avi', '.m4v', '.mkv', '.mov', '.mp4', '.webm'}
Painter = Callable[[np.ndarray], np.ndarray]
"""``(H, W, 3)`` of blue, green, red to a drawing of the same size."""


@dataclass(frozen=True)
class Drawing:
    """An image or a video, and the file that its drawing goes to.

    Attributes:
        source: To read.
        target: To write; of a video an ``.mp4``.
    """

    source: Path
    target: Path

    @property
    def is_video(self) -> bool:
        """Whether the source has the suffix of a video."""
        return self.source.suffix.lower() in VIDEO_SUFFIXES

    def frames(self) -> int:
        """Number of pictures: 1, or the frame count in the header of the video."""
        return max(1, mmcv.VideoReader(str(self.source)).frame_cnt) if self.is_video else 1

    def draw(self, paint: Painter, color_type: str = 'color') -> Iterator[None]:
        """Write the drawing; yields after each picture.

        Args:
            paint: What draws into a picture.
            color_type: How an image is read, as MMCV's ``imread`` calls it: with EXIF's rotation, or
                ``'color_ignore_orientation'``. The drawing lies as the image was read.

        Raises:
            UserError: If the source cannot be read or has too few bits, or the video not be written.
        """
        self.target.parent.mkdir(parents=True, exist_ok=True)
        if self.is_video:
            yield from self._draw_video(paint)
            return
        # Of an empty file OpenCV raises an error of its own.
        image = mmcv.imread(str(self.source), color_type) if self.source.stat().st_size else None
        if image is None:
            raise UserError(f"'{self.source}' is not readable as an image")
        refuse_dim(image, self.source)
        mmcv.imwrite(paint(image), str(self.target))
        yield

    def _draw_video(self, paint: Painter) -> Iterator[None]:
        video = mmcv.VideoReader(str(self.source))
        if not video.opened or not video.width:
            raise UserError(f"'{self.source}' is not readable as a video")
        size = video.width, video.height
        writer = cv2.VideoWriter(str(self.target), cv2.VideoWriter.fourcc(*'mp4v'), video.fps or 25, size)
        if not writer.isOpened():
            raise UserError(f"OpenCV cannot write '{self.target}': its build has no MPEG-4 encoder")
        try:
            while (frame := video.read()) is not None:
                writer.write(np.ascontiguousarray(paint(frame)))
                yield
        finally:
            writer.release()


def find_drawings(inputs: Iterable[Path], out: Path) -> list[Drawing]:
    """The images and videos of some paths, and the files that their drawings go to.

    Args:
        inputs: Images, videos and folders; folders are searched to their depth, but not ``out`` inside them.
        out: Folder of the drawings. Those of a folder's files keep their place below the folder.

    Returns:
        One for each file, in order of the inputs, sorted by name in a folder.

    Raises:
        FileNotFoundError: If an input does not exist, or a folder holds neither image nor video.
        ValueError: If two files would be drawn to the same one, or a file over itself.
    """
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    drawings: dict[Path, Drawing] = {}
    for given in inputs:
        if not given.exists():
            raise FileNotFoundError(f"the image '{given}' does not exist")
        found = [given]
        if given.is_dir():
            found = sorted(path for path in given.rglob('*') if path.suffix.lower() in known)
            found = [path for path in found if out.resolve() not in path.resolve().parents]
            if not found:
                raise FileNotFoundError(f"no image or video in the folder '{given}'; known: {', '.join(sorted(known))}")
        for path in found:
            drawing = Drawing(path, out / (path.relative_to(given) if given.is_dir() else path.name))
            if drawing.is_video:
                drawing = Drawing(path, drawing.target.with_suffix('.mp4'))
            if drawing.target.resolve() == path.resolve():
                raise ValueError(f"'{path}' would be overwritten by its drawing; give another folder with --out")
            other = drawings.setdefault(drawing.target, drawing)
            if other != drawing:
                raise ValueError(
                    f"'{other.source}' and '{path}' would both be drawn to '{drawing.target}'; give one --out each"
                )
    return list(drawings.values())
