"""Scalars and pictures of a run for Weights & Biases, beside TensorBoard's."""

from pathlib import Path
from typing import Any

import yaml
from detectron2.utils.events import EventWriter, get_event_storage

RUN_ID = "wandb_run_id"


class WandbWriter(EventWriter):
    """Sends what is new since the last call; a resumed run goes on in the same run of the server.

    Must come before detectron2's TensorBoard writer, which clears the pictures.

    Raises: ImportError: wandb is not installed (preflight says so before training starts).
    """

    def __init__(self, cfg) -> None:
        import wandb

        folder = Path(cfg.OUTPUT_DIR)
        known, resumed = folder / RUN_ID, get_event_storage().iter > 0
        folder.mkdir(parents=True, exist_ok=True)
        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=cfg.WANDB.PROJECT,
            name="/".join(folder.parts[-2:]),
            dir=str(folder),
            config=yaml.safe_load(cfg.dump()),
            id=known.read_text(encoding="utf-8") if resumed and known.is_file() else None,
            resume="allow",
        )
        known.write_text(self._run.id, encoding="utf-8")
        self._last = -1

    def write(self) -> None:
        storage = get_event_storage()
        rows: dict[int, dict[str, Any]] = {}
        for name, (value, when) in storage.latest_with_smoothing_hint().items():
            if when > self._last:
                rows.setdefault(when, {})[name] = value
        for name, picture, when in storage._vis_data:  # (3, H, W), as TensorBoard wants it
            rows.setdefault(when, {})[name] = self._wandb.Image(picture.transpose(1, 2, 0))
        for when in sorted(rows):
            self._run.log(rows[when], step=when)
        self._last = max([self._last, *rows])

    def close(self) -> None:
        self._run.finish()
