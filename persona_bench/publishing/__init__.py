"""Committed results: finished runs made small and anonymous, and the pages whose numbers are filled in from them.

`anonymous` takes paths of the maker's machine out, `curated` writes results/<model>/<preset>/, `pages` and its parts
write what README.md, docs/findings.md and the evals' own pages say about results, `notes` fills numbers into people's
words.
"""

from persona_bench.publishing.curated import Published, publish

__all__ = ["Published", "publish"]
