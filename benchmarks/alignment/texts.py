"""The sentences of docs/results.md that do not depend on the results."""

INTRODUCTION = """\
# Results: does the method work, where the true reward is known?

This page is written by `{command}`. Seeds {seeds}; {minutes:.0f} minutes of CPU time, not counting the
choices before them. All intervals are 95% t-intervals over seeds.

**The task** (`benchmarks/alignment/task.py`). Advice on cooking a dish, a list of clauses. A response's true reward
is a sum: +1 for each kind of right advice (method, seasoning, minutes: one word each, which depends on the prompt),
-1 for a wrong word, -1 for rudeness, 0.03 less for every token. The best response has three right clauses and is
worth 2.6. People write one to six clauses; three words in four are right. A model can exploit the length: a response of
a single clause risks little and is better than the average one, but is worth 0.9 at most. Preferences are draws of
sigmoid(difference of true rewards): {pairs:,} pairs, each seen once in {steps} steps of 32.

**The models.** Llamas of two layers, {hidden_size} wide, 64 tokens; a reference trained on {texts:,} texts, of true
reward {start} and {start_tokens:.0f} tokens. `dpo` and `reverse` are made by `precompute.teachers` (TRL's
DPOTrainer), caches by `precompute.build`, rollouts by `precompute.rollout`, students by `DistillTrainer`. All start
at the reference, with the same batch size, AdamW, schedule and number of steps. The policy gradient (TRL's RLOO,
eight samples a prompt) sees the true reward, at 64 responses a step. Everything is drawn again for each seed, the
reference too.

**The choices.** DPO is run at beta {betas}. Learning rates, and the beta and learning rate of the `dpo` and `reverse`
that teachers are made of, are chosen by one rule on a seed that is not reported:
[below](#what-was-chosen-before-the-runs). It took beta {beta:g} and learning rate {teacher_rate:g} for the teachers,
learning rate {dpo_rate:g} for DPO.

**The judge.** {samples} + {samples} sampled responses at temperature 1 to prompts about held-out dishes, after 1/8,
1/4, 1/2 and all of the steps. KL to the reference is exact: at every token of the sampled responses, summed over the
vocabulary; nats a response.
"""
FRONTIER = """\
A method's frontier at a KL is the largest reward of a mixture of two of its judged models (all knobs, all checkpoints,
the reference) whose KL is no more than that. A mixture is a real model: it answers with one of the two at random.
One half of the samples decides which models; the figure comes from the other half. Bold: the interval of the
difference, paired over seeds, is on one side of 0.
"""
FEW_TEXT = """\
The same with the first {pairs:,} of the pairs, in {steps} steps, everything chosen again by the same rule: beta
{beta:g} and learning rate {teacher_rate:g} for the teachers, learning rate {dpo_rate:g} for DPO. Differences are to
DPO on these few pairs.
"""
THEMSELVES = """\
Without any student: responses sampled from p\\* itself, composed of live models token by token, at four strengths.
If something is missing here, no training of a student can bring it back. If a student has more than its teacher, it has
that because its training stopped on the way.
"""
PAPER_TEXT = """\
Teachers of beta {beta:g}, the paper's, at the learning rate that is best for DPO, are there too.
"""
CREDIT = """\
At the positions of the reference's own responses to held-out prompts, on the seed of the choices. *Words*: the next
token is a seasoning or a time, of which one is right; *stops*: a clause has ended, and the response goes on or ends.
KL(p ‖ reference) is summed over a response's positions; D_t is that of the teacher's own dpo and negative. Where D_t is
large, an adaptive strength goes furthest.
"""
RUNS = """\
DPO's last reward, the one to reach: {target}, that of beta {beta:g}, which ends highest on the seed of the
choices; on few pairs {few_target}, of beta {few_beta:g}. Steps and seconds to it are read off a straight line between
two judgements; the mean is over the seeds that reach it. Rounds count sampling and scoring.
"""
REAL = """\
## Real preference pairs

No true reward is known here. A trio of models of {parameters:,} parameters, V = {vocabulary_size:,}, trained on real
text and real preferences; each seed draws {real_pairs} pairs, cut at {real_length} tokens, and trains DPO (TRL) and
students of the trio's teachers in {steps} steps of 8, all from the reference, with learning rates ({rates} were
tried) chosen by the rule above. Judged by what `student.evaluate` says on {pairs} held-out pairs, {tokens:.0f} tokens a
response.

The *contrastive reward* is the student's expectation of beta (l_dpo - l_reverse), summed over a response's positions.
It is what contrastive and aligndistil are distilled towards, and not what DPO is trained for: it shows how well they
optimise, not whether people would like the result. The accuracy on held-out pairs is the only figure that does not come
from these models. KL is summed over the same positions.
"""
CHOSEN = """\
One rule for all, on seed {seed}, which is none of those above: the mean of a method's frontier over the same KLs,
with all values of its knob, on the half of the samples that chooses. Learned strengths have the rates of aligndistil
and adaptive; students on rollouts have those of the same method on pairs.
"""
CHOSEN_TEACHERS = """\
The `dpo` and `reverse` that teachers are made of, by the same rule: the mean over the four teachers of the frontier
of the teacher itself, sampled without a student.
"""
