"""The documents that pairs are made of, and which of them are of no use."""

from collections.abc import Set
from typing import NamedTuple

from data_preparation.sources import Collection, needed_documents
from formats.documents import Document
from runtime.errors import InputError


class Needed(NamedTuple):
    """Documents with a body, and the ids of those that the collection lacks or that are empty."""

    documents: dict[str, Document]
    missing: set[str]
    empty: set[str]

    def figures(self) -> dict[str, int | list[str]]:
        """For a report; the ids of a few that are missing show which collection was meant."""
        return {
            "documents": len(self.documents),
            "documents_missing": len(self.missing),
            "documents_missing_for_example": sorted(self.missing)[:5],
            "documents_empty": len(self.empty),
        }

    def dropped(self, doc_ids: list[str]) -> dict[str, int]:
        """How many of `doc_ids` cannot be used, and why."""
        return {
            "document missing": sum(doc_id in self.missing for doc_id in doc_ids),
            "document empty": sum(doc_id in self.empty for doc_id in doc_ids),
        }


def read_needed(collection: Collection, doc_ids: Set[str], flag: str) -> Needed:
    """Reads the collection once for `doc_ids`, of which `flag` speaks.

    Raises InputError where the collection has none of them, or none with a body.
    """
    found = needed_documents(collection, doc_ids)
    missing = doc_ids - found.keys()
    documents = {doc_id: document for doc_id, document in found.items() if document.body.strip()}
    if not documents:
        raise InputError(
            f"{flag}: of its {len(doc_ids)} documents the collection has {len(found)}, none with a body; "
            f"ids such as {min(doc_ids)!r} need to be those of --collection"
        )
    return Needed(documents, missing, found.keys() - documents.keys())
