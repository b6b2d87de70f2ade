"""What becomes of a response, and the cuts between the outcomes: written here once, read everywhere."""

from __future__ import annotations

from typing import Literal, get_args

Outcome = Literal["scored", "refusal", "incoherent", "unscored"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""Every response is exactly one of these; only `scored` has a trait score. `unscored`: the grader failed."""

TRAIT_CUT = 50.0
"""A response shows the trait from this score on (0..100)."""
COHERENCE_CUT = 50.0
"""A response under this coherence (0..100) is incoherent; the paper's released filter cuts at the same place."""

Method = Literal["auto", "logprob", "sampled", "probe", "contrast", "yes_no"]
METHODS: tuple[Method, ...] = get_args(Method)
"""How a judge may judge: asked for a number (logprob, sampled), or a local grader read or compared (the others)."""

Filter = Literal["stated", "coded"]
FILTERS: tuple[Filter, ...] = get_args(Filter)
"""Which responses make a vector: as the paper's text states it, or as its released code does it."""
AnyFilter = Literal["stated", "coded", "unfiltered"]
"""With every response that has text, whatever the judge says of it: what a vector is that nobody filtered."""
UNFILTERED: Literal["unfiltered"] = "unfiltered"

Way = Literal["letter", "cloze", "likelihood", "generation"]
WAYS: tuple[Way, ...] = get_args(Way)
"""How a multiple-choice question is answered; `likelihood` compares nothing, where all are true."""
LIKELIHOOD_WAYS: tuple[Way, ...] = ("letter", "cloze", "likelihood")
"""Those for which nothing is generated."""

ChoiceOutcome = Literal["scored", "no_answer", "too_long", "unscored"]
CHOICE_OUTCOMES: tuple[ChoiceOutcome, ...] = get_args(ChoiceOutcome)
"""What becomes of a multiple-choice question; `no_answer` (no letter was said) counts as not right, the last two have
no number: the question is longer than the model's context, or there is no result."""
