"""Flags of other programs that people type out of habit, and what to type here."""

_GPUS = "choose GPUs with CUDA_VISIBLE_DEVICES=0,1 before the command, and --nproc N processes"
_CONTINUED = "the same command continues its run by itself; --ckpt FILE starts from another file"
_FILES = "--ckpt FILE trains on from a checkpoint, --ckpt_test FILE tests one"
_TESTED = "--test --ckpt_test FILE tests a checkpoint"
_LOGS = "logs go below --logdir, checkpoints below --checkpoints"
_PICTURES = "--predict PATH... --ckpt_test FILE --out DIR scores pictures and videos"
HABITS = {
    _CONTINUED: "resume resume_from auto_resume continue r",
    _FILES: "load load_from checkpoint weights pretrained_model model_path",
    _GPUS: "gpu gpus gpu_id gpu_ids device devices cuda cpu no_cuda use_cuda accelerator ngpu "
    "ngpus num_gpus n_gpus gpus_per_node nproc_per_node world_size nodes num_nodes rank "
    "distributed ddp",
    "TensorBoard's files go below --logdir; there is no other logger": "wandb use_wandb "
    "wandb_project tensorboard tb logger mlflow",
    "type --batch_size N": "batch bs b batchsize train_batch_size samples_per_gpu",
    "type --lr X": "learning_rate base_lr init_lr initial_lr",
    "type --weight_decay X": "wd l2",
    "type --random_seed N": "seed s manual_seed",
    "type --num_workers N": "workers j n_workers num_worker nworkers",
    "type --epochs N": "max_epochs num_epochs n_epochs total_epochs e ep iters max_iters steps",
    "type --data_root FOLDER": "data data_dir data_path datadir dataroot dataset_root root "
    "data_folder",
    "type --name NAME": "exp exp_name experiment experiment_name run_name run_id tag",
    _LOGS: "output output_dir save_dir work_dir out_dir log_dir logs save save_path checkpoint_dir "
    "ckpt_dir results_dir o",
    "type --backbone NAME": "model arch encoder net network resnet a",
    "type --precision bf16": "amp fp16 bf16 half mixed_precision use_amp autocast",
    _TESTED: "eval evaluate test_only eval_only evaluation val validate only_test mode",
    _PICTURES: "infer inference input image images img video source demo pictures",
    "type --export onnx --ckpt_test FILE --out FILE": "onnx",
    "type --config FILE": "cfg config_file yaml opts options set cfg_options c",
    "type --norm_act iabn_sync, which is the default": "sync_bn syncbn sync_batchnorm",
    "type --fix_bn": "freeze_bn freeze_norm frozen_bn",
    "type --crop_size N": "crop img_size image_size imgsz input_size size",
    "type --multi_scala, or --multi_scale": "multiscale ms tta ms_test scales multi_scale_test",
    "type --print_interval N": "print_freq log_interval log_freq log_every",
    "type --val_interval N": "val_freq eval_interval eval_freq eval_every",
    "type --ckpt_interval N": "save_freq save_interval save_every",
    "type --clip_grad_norm X": "clip_grad grad_clip max_grad_norm clip",
    "type --accumulate N": "grad_accum accum accum_iter gradient_accumulation_steps "
    "accumulate_grad_batches",
    "type --lr_policy poly or step": "scheduler sched lr_scheduler",
    "the optimizer is SGD with Nesterov momentum, see --momentum and --lr": "optimizer optim opt",
    "type --test_weights best": "best use_best",
    "type --score NAME": "method ood_score detector anomaly_score",
    "type --help": "usage",
}
"""{what to type here: the names of other programs' flags, without their dashes}"""


def advice_on(name: str) -> str | None:
    """What to type here for another program's flag, by its name without dashes."""
    return next((advice for advice, names in HABITS.items() if name in names.split()), None)
