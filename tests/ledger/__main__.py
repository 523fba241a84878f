"""`python -m tests.ledger`: make the pages anew."""

from __future__ import annotations

from tests.ledger import page, page_of, sources

for source in sources():
    page_of(source).write_text(page(source))
