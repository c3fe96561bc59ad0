"""The files beside a model's weights on the Hub, by which transformers loads it without this package."""

HUB_CODE = (
    "configuration_tpas.py",
    "modeling_tpas.py",
    "objectives.py",
    "pipeline_tpas.py",
    "processing_tpas.py",
)
