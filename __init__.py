"""Text-based person anomaly search: X-VLM with Similarity Coverage Analysis.

Import from the modules, e.g. ``from tpas.modeling_tpas import TPASModel``. Nothing is imported
here on purpose: the repository root is the package, and pytest imports this file a second time.
"""
