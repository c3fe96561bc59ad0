"""What else resolves collisions or hubs among ranked lists, each called as `tpas.sca.sca_rerank` is."""
