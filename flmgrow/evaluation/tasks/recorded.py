"""Tasks whose items are made here, with a record of what they are."""

from typing import Any

from lm_eval.api.task import ConfigurableTask

from flmgrow.evaluation.tasks.digest import digest_of


class RecordedTask(ConfigurableTask):  # type: ignore[misc]
    """A task that makes its own splits. The results tell their version and digest in its metadata.

    A YAML file names it as ``class``.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: object) -> None:
        """Make the data set. lm-eval calls it, once."""
        splits, version = self.made(dataset_kwargs or {})
        self.dataset = splits
        self.VERSION = version
        digest = digest_of(*splits.values())
        self.config.metadata = {**self.config.metadata, "version": version, "digest": digest}

    def made(self, options: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Return the splits by name, and the version of what made them."""
        raise NotImplementedError
