"""A stand-in for a camera."""

import numpy as np


class Camera:
    """In ``cv2.VideoCapture``'s place: two frames of 48x64 from camera 0, then Ctrl-C."""

    def __init__(self, number: int) -> None:
        assert number == 0
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
