"""Svc: scikit-learn's support-vector classifier on the pixels of pictures, as a baseline.

The classifier of scikit-learn's example "Recognizing hand-written digits": `SVC(gamma=0.001)` on
8 × 8 pixels from 0 to 16. The report shows it beside the model, on the same rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipelines.stage import Config, Context, Input, Inputs, Result, Stage

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


class SvcConfig(Config):
    """The classifier and what it sees."""

    gamma: Annotated[float, Field(gt=0, description="coefficient of the radial kernel")] = 0.001
    size: Annotated[int, Field(ge=1, description="side of the picture it sees, in pixels")] = 8
    white: Annotated[float, Field(gt=0, description="number that means white")] = 16.0


class Svc(Stage[SvcConfig]):
    """Trains scikit-learn's SVC on the training split's pixels, and scores it on the test split."""

    inputs = {"records": Input("records", "rows with pictures and labels")}
    output = "scores"
    libraries = ("scikit-learn", "opencv-python", "numpy")

    def run(self, context: Context, inputs: Inputs) -> Result:
        import numpy as np
        from sklearn.svm import SVC

        from pipelines.contracts.scores import SCORES, Score
        from pipelines.store.files import write_json
        from stages.rows.shards import read_rows
        from stages.score.significance import intervals
        from stages.score.statistics import ACCURACY

        config = self.config
        (records,) = inputs["records"]
        table = read_rows(records).drop_nulls("image").sort("id")
        train, test = table.filter(split="train"), table.filter(split="test")
        if train.is_empty() or test.is_empty():
            raise ValueError("there must be pictures in the train and in the test split")
        classifier = SVC(gamma=config.gamma).fit(self.pixels(train), train["target"].to_list())
        guesses = classifier.predict(self.pixels(test)).tolist()
        references = test["target"].to_list()
        rows = ACCURACY.segments({"hypothesis": guesses, "reference": references})
        name = f"SVC(gamma={config.gamma:g})"
        context.progress.say(f"{name} on {len(train):,} pictures")
        (ends,) = intervals({"accuracy": ACCURACY}, {"accuracy": rows}).values()
        score = Score(
            task=str(test["task"][0]),
            split="test",
            slice=None,
            baseline=name,
            metric="accuracy",
            value=ACCURACY.score(np.asarray(rows).sum(axis=0)),
            signature=f"{ACCURACY.signature()}|scikit-learn {name}",
            n=len(test),
            ci95=ends,
        )
        write_json(context.output / SCORES, [score.to_json()])
        return Result(rows_in=len(test), rows=len(test))

    def pixels(self, table: pl.DataFrame) -> np.ndarray:
        """(rows, size · size) grey values from 0 to `white`."""
        import cv2
        import numpy as np

        from model.modalities.image.files import decode, middle
        from model.modalities.image.settings import ImageSettings

        config = self.config
        settings = ImageSettings(resize=config.size)
        rows = []
        for data in table["image"]:
            picture = middle(decode(data, settings), config.size, config.size)
            grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
            rows.append(grey.reshape(-1) * (config.white / 255))
        return np.stack(rows)
