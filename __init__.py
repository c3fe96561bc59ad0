"""Text-based person anomaly search: X-VLM with Similarity Coverage Analysis.

What `__all__` names is public, and docs/api.md says what each does. A name is loaded when it is first used,
so `import tpas` loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names, where editors and type checkers follow them
    from .configuration_tpas import TPASConfig
    from .data.drawn.synthetic_pab import draw_pab
    from .data.image_folders import FolderRules
    from .data.moments import Moment
    from .data.pab import load_pab, retrieval_split
    from .data.pab_images import image_path
    from .data.retrieval_data import RetrievalData
    from .evaluation.recall_at_k import RecallAtK
    from .evaluation.retrieval import evaluate
    from .evaluation.scored import measure_scores
    from .evaluation.significance import confidence_intervals
    from .figures.collisions import plot_collisions, resolved_collisions
    from .figures.results import ResultRow, plot_result_rows
    from .figures.saving import save_figure
    from .figures.training import plot_training
    from .footage.intake import open_footage
    from .footage.rules import FootageRules
    from .footage.standing import Alarm, StandingQueries
    from .modeling_tpas import TPASModel
    from .models.loading import load_model
    from .processing_tpas import TPASProcessor, load_image
    from .reranking.fusion import SystemScores, reciprocal_rank, weighted_sum
    from .reranking.hubness import csls, dual_softmax, sinkhorn
    from .reranking.one_to_one import bounded_assignment, greedy_matching
    from .reranking.querybank import QueryBank, qb_norm
    from .reranking.score_files import ScoreFile, read_score_file, write_score_file
    from .sca import SCAReport, coverage, sca_rerank
    from .search.calibration import Calibration
    from .search.explanation import explain, heat_map
    from .search.folder_gallery import open_folder
    from .search.gallery import Gallery
    from .search.hits import SearchHit
    from .training.log import read_training_log

__all__ = [
    "Alarm",
    "Calibration",
    "FolderRules",
    "FootageRules",
    "Gallery",
    "Moment",
    "QueryBank",
    "RecallAtK",
    "ResultRow",
    "RetrievalData",
    "SCAReport",
    "ScoreFile",
    "SearchHit",
    "StandingQueries",
    "SystemScores",
    "TPASConfig",
    "TPASModel",
    "TPASProcessor",
    "bounded_assignment",
    "confidence_intervals",
    "coverage",
    "csls",
    "draw_pab",
    "dual_softmax",
    "evaluate",
    "explain",
    "greedy_matching",
    "heat_map",
    "image_path",
    "load_image",
    "load_model",
    "load_pab",
    "measure_scores",
    "open_folder",
    "open_footage",
    "plot_collisions",
    "plot_result_rows",
    "plot_training",
    "qb_norm",
    "read_score_file",
    "read_training_log",
    "reciprocal_rank",
    "resolved_collisions",
    "retrieval_split",
    "save_figure",
    "sca_rerank",
    "sinkhorn",
    "weighted_sum",
    "write_score_file",
]

_NAMES_OF = {
    "configuration_tpas": "TPASConfig",
    "data.drawn.synthetic_pab": "draw_pab",
    "data.image_folders": "FolderRules",
    "data.moments": "Moment",
    "data.pab": "load_pab retrieval_split",
    "data.pab_images": "image_path",
    "data.retrieval_data": "RetrievalData",
    "evaluation.recall_at_k": "RecallAtK",
    "evaluation.retrieval": "evaluate",
    "evaluation.scored": "measure_scores",
    "evaluation.significance": "confidence_intervals",
    "figures.collisions": "plot_collisions resolved_collisions",
    "figures.results": "ResultRow plot_result_rows",
    "figures.saving": "save_figure",
    "figures.training": "plot_training",
    "footage.intake": "open_footage",
    "footage.rules": "FootageRules",
    "footage.standing": "Alarm StandingQueries",
    "modeling_tpas": "TPASModel",
    "models.loading": "load_model",
    "processing_tpas": "TPASProcessor load_image",
    "reranking.fusion": "SystemScores reciprocal_rank weighted_sum",
    "reranking.hubness": "csls dual_softmax sinkhorn",
    "reranking.one_to_one": "bounded_assignment greedy_matching",
    "reranking.querybank": "QueryBank qb_norm",
    "reranking.score_files": "ScoreFile read_score_file write_score_file",
    "sca": "SCAReport coverage sca_rerank",
    "search.calibration": "Calibration",
    "search.explanation": "explain heat_map",
    "search.folder_gallery": "open_folder",
    "search.gallery": "Gallery",
    "search.hits": "SearchHit",
    "training.log": "read_training_log",
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """A public name, at its first use (PEP 562).

    Relative, because the root is the package and may be imported under the name of its folder.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
