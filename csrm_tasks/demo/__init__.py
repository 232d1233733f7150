"""The generated market: lexicon, catalogues, queries, true grades, raters, shoppers, landing."""
