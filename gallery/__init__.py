"""A gallery of pictures on disk, and the indexes over its embeddings; `tpas.search` puts them to use."""
