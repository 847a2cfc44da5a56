"""What an export makes for others: a card beside the weights, and a push if one is wanted."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flmgrow.formats.history.manifest_value import Manifest
from flmgrow.hub.card import CARD, CardFacts, card, is_own
from flmgrow.hub.push import Push
from flmgrow.storage.durable import write_small


@dataclass(frozen=True)
class Publication:
    """The facts of the card, and the push; None to write the folder only."""

    facts: CardFacts
    push: Push | None = None

    def beside(self, manifest: Manifest) -> Mapping[str, bytes]:
        """Return the card as a small file beside the weights."""
        return {CARD: card(manifest, self.facts)}

    def publish(self, folder: Path, manifest: Manifest) -> str:
        """Push ``folder`` and return the commit's address, with the card brought up to date.

        A card that somebody edited is pushed as it is.

        Raises:
            HubError: The Hub refuses, or does not answer.
            OutputExistsError: The output is there, or another run is writing it.
            UsageError: What was asked for cannot be.
            StorageError: The file system failed.
        """
        assert self.push is not None, "there is nowhere to push to"
        page, wanted = folder / CARD, card(manifest, self.facts)
        found = page.read_bytes() if page.exists() else None
        if found != wanted and (found is None or is_own(found)):
            write_small(page, wanted)
        return self.push.run(folder, manifest, f"Upload {folder.name} with flmgrow")
