"""What the kernels of recurrences with one matrix per head share.

Those are the gated delta rule (`delta_rule`) and the state space of Mamba 2 (`selective_scan`).
"""
