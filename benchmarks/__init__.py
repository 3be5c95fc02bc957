"""What polymmu costs, beside what else can be had: ``python -m benchmarks [NAME...]`` from a checkout.

Every figure stands next to a reference measured in the same run, because the ratio survives a move to
another computer and the figure does not. ``measure`` says how; ``docs/performance.md`` says why.
"""
