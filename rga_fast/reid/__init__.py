"""Person re-identification on top of rga_fast: data, network, training, evaluation."""
