"""What integrations of other frameworks share: how weights are packed and read back, and what is modelled of them."""
