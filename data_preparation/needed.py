"""The documents that pairs are made of."""

from collections.abc import Set
from typing import NamedTuple

from data_preparation.sources import Collection, needed_documents
from formats.documents import Document
from runtime.errors import InputError


class Needed(NamedTuple):
    """Documents with a body, and the ids of documents that are not in the collection or have no body."""

    documents: dict[str, Document]
    missing: set[str]
    empty: set[str]

    def figures(self) -> dict[str, int | list[str]]:
        """Counts for a report. A few ids of missing documents show which collection they belong to."""
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
    """Reads the collection once and returns the documents `doc_ids`, which come from the file of `flag`.

    Raises InputError if the collection has none of them, or none with a body.
    """
    found = needed_documents(collection, doc_ids)
    missing = doc_ids - found.keys()
    documents = {doc_id: document for doc_id, document in found.items() if document.body.strip()}
    if not documents:
        raise InputError(
            f"{flag}: the collection has {len(found)} of the {len(doc_ids)} documents, none with a body; "
            f"ids such as {min(doc_ids)!r} need to be ids of --collection"
        )
    return Needed(documents, missing, found.keys() - documents.keys())
