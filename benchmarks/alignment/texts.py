"""The sentences of docs/results.md that stand whatever came out."""

INTRODUCTION = """\
# Results: does the method work, where the true reward is known?

This page is written by `{command}`. Seeds {seeds}; {minutes:.0f} minutes of CPU time on one thread,
{wall_minutes:.0f} minutes by the clock of a machine with other work, without the choice of learning rates. All
intervals are 95% t-intervals over seeds.

**The task** (`benchmarks/alignment/task.py`). Advice on cooking a dish, a list of clauses. A response's true reward
is a sum: +1 for each kind of right advice (method, seasoning, minutes: one word each, which depends on the prompt),
-1 for a wrong word, -1 for rudeness, 0.03 less for every token. The best response has three right clauses and is
worth 2.6. People write one to six clauses, three words in four are right. Length can be gamed: a response of a single
clause cannot go far wrong and is better than the average one, and yet worth 0.9 at most. Preferences are draws of
sigmoid(difference of true rewards): {pairs:,} pairs, each seen once in {steps} steps of 32.

**The models.** Llamas of two layers, {hidden_size} wide, 64 tokens; a reference trained on {texts:,} texts, of true
reward {start} and {start_tokens:.0f} tokens. `dpo` and `reverse` are made by `precompute.teachers` (TRL's DPOTrainer)
with beta {beta:g}, caches by `precompute.build`, rollouts by `precompute.rollout`, students by `DistillTrainer`. All
start at the reference, with the same batch size, AdamW, schedule and number of steps. The policy gradient (TRL's
RLOO, eight samples a prompt) sees the true reward, and has twice as many steps of 64 responses. Everything is drawn
anew for each seed, the reference too.

**The judge.** {samples} + {samples} sampled responses at temperature 1 to prompts about held-out dishes, after 1/8,
1/4, 1/2 and all of the steps. KL to the reference is exact: at every token of the sampled responses, summed over the
vocabulary; nats a response.
"""
OUTLOOK = """\
How to tell before a run how far a teacher can be trusted to go: [recipes.md](recipes.md). What is not here: models of
some size and real preferences, by the same protocol.
"""
FRONTIER = """\
A method's frontier at a KL: the largest reward of a mixture of two of its judged models (all knobs, all checkpoints,
the reference) whose KL is no more than that. Mixtures can be had, by answering with one of the two models at random.
Which models is decided by one half of the samples, the figure is that of the other. Bold: the interval of the
difference, paired over seeds, is on one side of 0.
"""
MILD_TEXT = """\
The same with teachers that went less far: `dpo` and `reverse` trained at the lowest learning rate, {rate:g}; {seeds}.
"dpo, mild teachers" are those DPO models, of every beta. Differences are to the frontier of "dpo" above.
"""
THEMSELVES = """\
Without any student: responses sampled from p\\* itself, composed of live models token by token, at five strengths.
What is missing here no training of a student can bring back; what a student has more, it has from stopping on the
way.
"""
PLENTY_TEXT = """\
Seed {seed} once more with {pairs:,} pairs, as many more steps, and learning rate {rate:g}: whether it is the noise of
few preferences that the teachers amplify. One seed, so no intervals.
"""
CREDIT = """\
At the positions of the reference's own responses to held-out prompts, on the seed by which learning rates were
chosen. *Words*: the next token is a seasoning or a time, of which one is right; *stops*: a clause has ended, and the
response goes on or ends. KL(p ‖ reference) is summed over a response's positions, D_t is of the teacher's own dpo and
negative. Where D_t is large, an adaptive strength goes furthest.
"""
RUNS = """\
DPO's last reward, which is to be reached: {target}, that of beta {beta:g}, of which all teachers but the mild ones
are made; for these it is that of the mild DPO model of the same beta. Steps and seconds to it: by a straight line
between two judgements, the mean over the seeds that reach it. Rounds count sampling and scoring.
"""
