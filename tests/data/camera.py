"""A stand-in for a camera."""

import cv2
import numpy as np

_capture = cv2.VideoCapture


def open_capture(name: int | str):
    """In ``cv2.VideoCapture``'s place: camera 0 is a stand-in, a file is itself."""
    return Camera() if name == 0 else _capture(name)


class Camera:
    """Two frames of 48x64, then Ctrl-C."""

    def __init__(self) -> None:
        self.frames = 0

    def isOpened(self) -> bool:
        return True

    def get(self, key: int) -> float:
        return 0.0

    def release(self) -> None:
        pass

    def read(self):
        self.frames += 1
        if self.frames > 2:
            raise KeyboardInterrupt
        return True, np.full((48, 64, 3), 90, np.uint8)
