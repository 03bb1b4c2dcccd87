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

    from stages.rows.rejects import Reject


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
        from stages.measures.significance import intervals
        from stages.measures.statistics import ACCURACY
        from stages.rows.rejects import write_rejects
        from stages.rows.shards import read_rows

        config = self.config
        (records,) = inputs["records"]
        table = read_rows(records).drop_nulls("image").sort("id")
        rejects: list[Reject] = []
        train, seen = self.pixels(table.filter(split="train"), [])
        test, asked = self.pixels(table.filter(split="test"), rejects)
        if train.is_empty() or test.is_empty():
            raise ValueError("there must be pictures in the train and in the test split")
        classifier = SVC(gamma=config.gamma).fit(seen, train["target"].to_list())
        guesses = classifier.predict(asked).tolist()
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
        rejected = write_rejects(rejects, context, 1)
        return Result(rows_in=len(test) + len(rejects), rows=len(test), rejected=rejected)

    def pixels(self, table: pl.DataFrame, rejects: list[Reject]) -> tuple[pl.DataFrame, np.ndarray]:
        """The rows whose picture can be used, and its grey values (rows, size · size) from 0 to
        `white`; adds the others to `rejects`."""
        import cv2
        import numpy as np
        import polars as pl

        from model.modalities.image.files import decode, middle
        from model.modalities.image.settings import ImageSettings
        from model.modalities.media import MediaError
        from stages.rows.rejects import Reject

        config = self.config
        settings = ImageSettings(resize=config.size, crop=config.size)
        rows: list[np.ndarray] = [np.zeros((0, config.size**2))]
        used: list[bool] = []
        for row in table.select("id", "position", "image").iter_rows(named=True):
            try:
                picture = middle(decode(row["image"], settings), settings)
            except MediaError as error:
                rejects.append(
                    Reject(
                        id=row["id"],
                        position=row["position"],
                        stage="svc",
                        reason=error.reason,
                        detail=error.detail,
                    )
                )
                used.append(False)
                continue
            grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
            rows.append(grey.reshape(1, -1) * (config.white / 255))
            used.append(True)
        return table.filter(pl.Series(used, dtype=pl.Boolean)), np.concatenate(rows)
