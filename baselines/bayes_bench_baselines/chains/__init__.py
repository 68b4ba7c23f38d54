"""Networks kept along Markov chains: Langevin dynamics and Hamiltonian Monte Carlo."""
