"""Real time: cards as processes, torch workers, emulated cards and links, checkpoints, watch, pictures.

How a run goes: :mod:`~zhenfa.live.run` places a plan's stages on cards (:mod:`~zhenfa.live.placement`) and asks an
engine (:mod:`~zhenfa.live.engine`: processes of this host, or Ray) for a process for each. The driver
(:mod:`~zhenfa.live.train`) sends the cards orders and watches them; a card (:mod:`~zhenfa.live.worker`) runs its stage
of the model (:mod:`~zhenfa.live.decoder`) under torch's pipeline schedules (:mod:`~zhenfa.live.pipeline`) on its own
clock (:mod:`~zhenfa.live.pace`). :mod:`~zhenfa.live.report` makes a run document of what they measured.

Nothing here imports torch, Ray or matplotlib before it is used.
"""
