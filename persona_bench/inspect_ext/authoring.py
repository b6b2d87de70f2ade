"""A generator model writes a new trait's texts; its reply is data, read strictly and asked for again if need be."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from persona_bench.definitions.trait_review import refuse_errors, review
from persona_bench.definitions.trait_writing import parse, request
from persona_bench.errors import PersonaBenchError, RunError, TraitError, first_line
from persona_bench.inspect_ext.graders import ask
from persona_bench.inspect_ext.judging import opened

if TYPE_CHECKING:
    from collections.abc import Callable

    from inspect_ai.model import Model

    from persona_bench.definitions.traits import Trait

ROLE = "generator"
ATTEMPTS = 3
MAX_TOKENS = 8192


def open_generator(spec: str) -> Model:
    """The model of role `generator`, or the one named where nothing is bound to it.

    Raises:
        RunError: it cannot be had: an unknown provider, a missing package or key.
    """
    from inspect_ai.model import get_model

    return opened(f"{ROLE} {spec}", partial(get_model, role=ROLE, default=spec))


def write_trait(
    generator: Model, description: str, name: str = "", say: Callable[[str], None] = lambda _: None
) -> Trait:
    """A trait with texts of the generator's, as whole as `review` demands.

    Args:
        generator: the model.
        description: the trait in the user's words.
        name: the trait's name, "" for one of the generator's.
        say: told why a reply was not used.

    Raises:
        TraitError: no reply could be used.
        RunError: the generator's service fails.
    """
    try:
        return asyncio.run(_write(generator, description, name, say))
    except PersonaBenchError:
        raise
    except Exception as error:
        # Every provider has exceptions of its own.
        first = first_line(error)
        raise RunError(f"{ROLE} {generator} failed: {first}; run the command again or try another one") from error


async def _write(generator: Model, description: str, name: str, say: Callable[[str], None]) -> Trait:
    from inspect_ai.model import GenerateConfig

    about = {"written_by": str(generator), "date": datetime.now(UTC).strftime("%Y-%m-%d")}
    problem = ""
    for attempt in range(1, ATTEMPTS + 1):
        config = GenerateConfig(temperature=1, max_tokens=generator.config.max_tokens or MAX_TOKENS, seed=attempt)
        output = await ask(generator, request(description, name, problem), config, ROLE)
        try:
            if not output.empty and output.stop_reason == "max_tokens":
                raise TraitError(f"the reply was cut off after {config.max_tokens} tokens")
            trait = parse("" if output.empty else output.completion, description, name, about)
            refuse_errors(trait.name, review(trait))
        except TraitError as error:
            problem = "".join(item if item.isprintable() else " " for item in str(error))
            say(f"reply {attempt} of {ATTEMPTS} cannot be used: {problem}")
        else:
            return trait
    raise TraitError(
        f"generator {generator} wrote no trait that can be used in {ATTEMPTS} replies, the last because: {problem}; "
        "try another --generator, or leave it out for a template to fill in"
    )
