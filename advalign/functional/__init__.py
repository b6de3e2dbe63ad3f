"""Pure tensor functions: tensors and floats in, tensors out; no module, no configuration, no device choice, no I/O.

Nothing here averages over a batch: the weights of `weights` do, once for a whole update. Index t is about token t. All of it is public;
what a new plugin usually needs:

    masks.sampled_tokens, masks.demonstrated_tokens     which tokens count
    weights.token, weights.sequence, weights.rows       how much each of them counts
    logprobs.zero_off_target, logprobs.shift_right      "B T" tensors that are zero off target, and about token t
    ratios, policy, divergence, preference, gan         losses, element by element
    advantages.expand, advantages.centred               one number per row on its target tokens; rewards minus their group's mean
    balls.project, balls.sample, balls.steepest         balls of an adversary
"""
