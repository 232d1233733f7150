"""The true grade of a query and a product, by rule.

Let a query ask for a type and possibly a brand and attribute values.

- exact (2): the product is of that type and meets every constraint asked for;
- substitute (1): the type matches but a constraint does not, or it is another type of the same
  substitute group (the leaf category);
- irrelevant (0): anything else.

A query for a brand alone: exact is any product of the brand; substitute is another maker's product
in the group that the brand is known for (its first); anything else is irrelevant.
"""

from __future__ import annotations

from csrm_tasks.demo.market.compose import Spec
from csrm_tasks.demo.market.lexicon import Lexicon
from csrm_tasks.demo.market.queries import Query
from csrm_tasks.records import Grade


def true_grade(lexicon: Lexicon, query: Query, spec: Spec) -> Grade:
    """Return the grade by the rule above."""
    group = lexicon.types[spec.type].group
    if query.type is None:
        return _brand_grade(lexicon, query, spec, group)
    if query.type == spec.type and _meets(query, spec):
        return Grade.EXACT
    return Grade.SUBSTITUTE if lexicon.types[query.type].group == group else Grade.IRRELEVANT


def _meets(query: Query, spec: Spec) -> bool:
    brand_ok = query.brand is None or query.brand == spec.brand
    return brand_ok and all(value in spec.values for value in query.values)


def _brand_grade(lexicon: Lexicon, query: Query, spec: Spec, group: int) -> Grade:
    if query.brand == spec.brand:
        return Grade.EXACT
    assert query.brand is not None, "a query asks for a type or for a brand"
    known_for = lexicon.brands[query.brand].groups[0]
    return Grade.SUBSTITUTE if group == known_for else Grade.IRRELEVANT
