"""The text of a project's config: a child of a recipe that says what its data and its machine change."""

from pathlib import Path

from .dataset import DataSet
from .plan import Plan

_WIDTHS = [124, 249, 499, 998]  # of PeLK-T
_SCRATCH = (
    "        # From scratch: there are no weights here. ConvNeXt-T's, and how to start from them: docs/inflation.md.\n"
)
_NANO = (
    '    # A nano network, which a CPU trains in minutes: to see that everything works, not what PeLK-T would reach.\n'
)


def config_text(data: DataSet, plan: Plan, project: Path) -> str:
    """A text config of mmengine.

    Args:
        data: The data set.
        plan: How to train on it.
        project: Folder of the lists that the data sets read.
    """
    parts = {'seg': _segmentation, 'det': _detection, 'cls': _classification}[data.task](data, plan)
    start = f'starts from {plan.weights}' if plan.weights else 'starts from scratch'
    counts = f'{len(data.splits["train"])} pictures to train on, {len(data.splits["val"])} to validate on'
    recipe = 'demo/mask_rcnn_pelk_nano_synthetic.py' if data.task == 'det' and plan.nano else plan.recipe
    head = f"""# {len(data.classes)} classes, {counts}; {start}.
# Written by tools/new_project.py; yours to change.
_base_ = __import__('mmpelk').config_path({recipe!r})

data_root = {literal(str(data.root))}
project = {literal(str(project))}
{_names(data)}num_classes = len(classes)
"""
    return head + parts


def literal(text: str) -> str:
    """A string of Python that means ``text`` in a config, too, where mmengine replaces what stands in double braces."""
    return repr(text).replace('{', '\\x7b') if '{{' in text else repr(text)


def _names(data: DataSet) -> str:
    classes = _wrap('classes', '()', [literal(name) for name in data.classes])
    if data.task == 'cls':
        return classes
    # MMDetection takes a tuple for one colour.
    return classes + _wrap('palette', '[]', [str(tuple(colour)) for colour in data.palette])


def _wrap(name: str, brackets: str, items: list[str]) -> str:
    """``name = (...)``, on lines of at most 120 columns."""
    opened, closed = brackets[0], brackets[1]
    one = f'{name} = {opened}{", ".join(items)}{"," * (brackets == "()")}{closed}\n'
    if len(one) <= 120:
        return one
    lines, line = [], ''
    for item in items:
        if len(line) + len(item) > 112:
            lines.append(line.rstrip())
            line = ''
        line += f'{item}, '
    return f'{name} = {opened}\n' + ''.join(f'    {part}\n' for part in [*lines, line.rstrip()]) + f'{closed}\n'


def _start(plan: Plan) -> str:
    """The backbone's lines about its weights, and its architecture."""
    if plan.weights is None:
        return _SCRATCH + '        init_cfg=None,\n'
    named = ''.join(f'        {key}={value!r},\n' for key, value in plan.backbone.items())
    return f"{named}        init_cfg=dict(_delete_=True, type='mmpelk.Inflated', checkpoint={literal(plan.weights)}),\n"


def _loaders(data: DataSet, plan: Plan, val_batch: int = 1) -> str:
    test = _loader(data, plan, 'test', val_batch) if 'test' in data.splits else 'test_dataloader = val_dataloader\n'
    return f'{_loader(data, plan, "train", plan.batch_size)}{_loader(data, plan, "val", val_batch)}{test}'


def _loader(data: DataSet, plan: Plan, split: str, batch: int) -> str:
    end, prefix = '.json' if data.task == 'det' else '.txt', ''
    if data.task == 'det':
        prefix = f'\n        data_prefix=dict(img={literal(data.details["folders"][split])}),'
    return f"""{split}_dataloader = dict(
    batch_size={batch},
    num_workers={plan.workers},
    persistent_workers={plan.workers > 0},
    dataset=dict(
        _delete_=True,
        ann_file=project + '/{split}{end}',{prefix}
        pipeline={split}_pipeline,
        **_dataset,
    ),
)
"""


def _load_image(data: DataSet) -> str:
    if not data.ignore_orientation:
        return "    dict(type='LoadImageFromFile'),\n"
    return "    dict(type='LoadImageFromFile', color_type='color_ignore_orientation'),  # as the labels were drawn\n"


def _segmentation(data: DataSet, plan: Plan) -> str:
    crop = plan.size[0]
    stride = crop * 2 // 3
    if plan.nano:
        note = _NANO
        backbone = """        depths=(1, 1, 2, 1),
        channels=(32, 64, 128, 192),
        kernel_sizes=(31, 15, 9, 5),
        drop_path_rate=0.0,
        init_cfg=None,
"""
        decode = 'in_channels=[32, 64, 128, 192], channels=64, dropout_ratio=0.0, '
        auxiliary = 'in_channels=128, channels=32, '
    else:
        note, backbone, decode, auxiliary = '', _start(plan), '', ''
        if plan.weights:
            decode, auxiliary = f'in_channels={list(plan.widths)}, ', f'in_channels={plan.widths[2]}, '
    # From scratch all layers learn at the same rate.
    decay = '' if plan.weights else ', paramwise_cfg=dict(decay_rate=1.0)'
    warm_up = max(10, min(1500, plan.iterations // 20))
    interval = plan.val_interval
    return f"""crop_size = ({crop}, {crop})
scale = ({4 * plan.resized}, {plan.resized})

model = dict(
    data_preprocessor=dict(size=crop_size),
{note}    backbone=dict(
{backbone}    ),
    decode_head=dict({decode}num_classes=num_classes),
    auxiliary_head=dict({auxiliary}num_classes=num_classes),
    test_cfg=dict(crop_size=crop_size, stride=({stride}, {stride})),
)
custom_hooks = []  # these weights are dense

train_pipeline = [
{_load_image(data)}    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
val_pipeline = [
{_load_image(data)}    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
test_pipeline = val_pipeline
# Every view has the scale of the validation, times the ratio.
tta_pipeline = [
{_load_image(data)}    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=tuple(round(side * ratio) for side in scale), keep_ratio=True)
                for ratio in (0.75, 1.0, 1.25)
            ],
            [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
# The lists name the images; labels/ has a map of class indices for each, 255 where nothing is trained.
_dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    data_prefix=dict(img_path='', seg_map_path=project + '/labels'),
    img_suffix='',
    seg_map_suffix='.png',
    metainfo=dict(classes=classes, palette=palette),
    reduce_zero_label=False,
)
{_loaders(data, plan)}
# The learning rate is for a batch of {plan.batch_size}: more processes take --auto-scale-lr.
optim_wrapper = dict(optimizer=dict(lr={plan.lr!r}){decay})
auto_scale_lr = dict(base_batch_size={plan.batch_size})
max_iters = {plan.iterations}
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end={warm_up}),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin={warm_up}, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval={interval})
default_hooks = dict(
    logger=dict(interval={_log_interval(plan)}),
    checkpoint=dict(interval={interval}, max_keep_ckpts=1, save_best='mIoU'),
)
"""


def _detection(data: DataSet, plan: Plan) -> str:
    masks = data.details['masks']
    if plan.nano:
        note, backbone = _NANO, ''
        heads = 'bbox_head=dict(num_classes=num_classes), '
    else:
        note = ''
        norms = '' if plan.weights else '        norm_eval=False,\n'
        backbone = f'    backbone=dict(\n{_start(plan)}{norms}    ),\n'
        # Without pre-training, a detector whose neck and heads have no norms hardly learns.
        norm = '' if plan.weights else ", norm_cfg=dict(type='BN')"
        backbone += f'    neck=dict(in_channels={list(plan.widths) or _WIDTHS}{norm}),\n'
        heads = 'bbox_head=dict(num_classes=num_classes), '
    heads += 'mask_head=dict(num_classes=num_classes)' if masks else 'mask_head=None, mask_roi_extractor=None'
    milestones = [round(plan.epochs * 2 / 3), round(plan.epochs * 11 / 12)]
    warm_up = max(10, min(1000, plan.iterations // 10))
    interval = plan.val_interval
    metric = "['bbox', 'segm']" if masks else "'bbox'"
    best = 'coco/segm_mAP' if masks else 'coco/bbox_mAP'
    rates = 'peripheral_lr_mult=0.1' if plan.weights else 'decay_rate=1.0'
    decay = f'\n    paramwise_cfg=dict({rates}),'
    shorter = round(plan.resized * 0.75 / 32) * 32
    return f"""scale = {plan.size}  # longest and shortest side

model = dict(
{note}{backbone}    roi_head=dict({heads}),
)
custom_hooks = []  # these weights are dense

train_pipeline = [
{_load_image(data)}    dict(type='LoadAnnotations', with_bbox=True, with_mask={masks}),
    dict(type='RandomChoiceResize', scales=[scale, ({plan.size[0]}, {shorter})], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
val_pipeline = [
{_load_image(data)}    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask={masks}),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
test_pipeline = val_pipeline
_dataset = dict(type='CocoDataset', data_root=data_root, metainfo=dict(classes=classes, palette=palette))
{_loaders(data, plan)}val_evaluator = dict(ann_file=project + '/val.json', metric={metric})
test_evaluator = dict(ann_file=project + '/{'test' if 'test' in data.splits else 'val'}.json', metric={metric})

# The learning rate is for a batch of {plan.batch_size}: more processes take --auto-scale-lr.
optim_wrapper = dict(
    accumulative_counts=1,
    optimizer=dict(lr={plan.lr!r}),
    clip_grad=dict(max_norm=5.0),{decay}
)
auto_scale_lr = dict(base_batch_size={plan.batch_size})
max_epochs = {plan.epochs}  # {plan.iterations} iterations
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end={warm_up}),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=max_epochs, milestones={milestones}, gamma=0.1),
]
train_cfg = dict(max_epochs=max_epochs, val_interval={interval})
default_hooks = dict(
    logger=dict(interval={_log_interval(plan)}),
    checkpoint=dict(interval={interval}, max_keep_ckpts=1, save_best={best!r}),
)
"""


def _classification(data: DataSet, plan: Plan) -> str:
    side = plan.size[0]
    topk = '(1, 5)' if len(data.classes) > 5 else '(1,)'
    norm = "        norm_cfg=dict(type='BN'),\n"
    if plan.nano and side <= 64:
        note, head = _NANO, 80
        backbone = '        depths=(1, 1),\n        channels=(40, 80),\n        kernel_sizes=(13, 7),\n'
        backbone += '        stem_patch_size=2,\n'
    elif plan.nano:
        note, head = _NANO, 128
        backbone = '        depths=(1, 1, 2),\n        channels=(32, 64, 128),\n        kernel_sizes=(31, 15, 7),\n'
    if plan.nano:
        backbone += f'        layer_scale_init_value=1.0,\n        drop_path_rate=0.0,\n{norm}        init_cfg=None,\n'
        head_text = f'in_channels={head}, '
    else:
        note, backbone = '', _start(plan) + norm
        head_text = f'in_channels={plan.widths[-1]}, ' if plan.weights else ''
    warm_up = max(1, plan.epochs // 20)
    interval = plan.val_interval
    crop_scale = '(0.6, 1.0)' if side <= 64 else '(0.25, 1.0)'
    edge = side if side <= 64 else round(side * 256 / 224)
    flip = "    dict(type='RandomFlip', prob=0.5, direction='horizontal'),\n"
    return f"""
model = dict(
    data_preprocessor=dict(num_classes=num_classes),
{note}    backbone=dict(
{backbone}    ),
    head=dict({head_text}num_classes=num_classes, topk={topk}),
    train_cfg=None,  # neither mixup nor cutmix: they are for long trainings
)
custom_hooks = []  # these weights are dense

_resize = dict(backend='pillow', interpolation='bicubic')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale={side}, crop_ratio_range={crop_scale}, **_resize),
{flip}    dict(type='PackInputs'),
]
val_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale={edge}, edge='short', **_resize),
    dict(type='CenterCrop', crop_size={side}),
    dict(type='PackInputs'),
]
test_pipeline = val_pipeline
_dataset = dict(type='CustomDataset', data_root=data_root, data_prefix='', metainfo=dict(classes=classes))
{_loaders(data, plan, plan.batch_size)}val_evaluator = dict(topk={topk})
test_evaluator = val_evaluator

# The learning rate is for a batch of {plan.batch_size}: more processes take --auto-scale-lr.
optim_wrapper = dict(optimizer=dict(lr={plan.lr!r}))
auto_scale_lr = dict(base_batch_size={plan.batch_size})
max_epochs = {plan.epochs}  # {plan.iterations} iterations
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end={warm_up}, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin={warm_up}, end=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval={interval})
default_hooks = dict(
    logger=dict(interval={_log_interval(plan)}),
    checkpoint=dict(interval={interval}, max_keep_ckpts=1, save_best='accuracy/top1'),
)
env_cfg = dict(cudnn_benchmark=True)
"""


def _log_interval(plan: Plan) -> int:
    return 50 if plan.iterations > 1000 else 10
