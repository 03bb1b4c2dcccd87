"""How OpenCV is used: on one thread, and without its lines on stderr."""

from __future__ import annotations

import cv2

from model.modalities.process_wide import ProcessWide, Undo


def _put() -> Undo:
    threads, level = cv2.getNumThreads(), cv2.utils.logging.getLogLevel()
    cv2.setNumThreads(1)
    # Broken files are reported as rejects.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

    def undo() -> None:
        cv2.setNumThreads(threads)
        cv2.utils.logging.setLogLevel(level)

    return undo


OPENCV = ProcessWide(_put)
"""Workers share the cores, so a worker's OpenCV must not use all of them."""
