"""The family InternVL 2.5, 3 and 3.5: tiles of one size, InternViT, pixel shuffle. Layouts hf and hf-custom."""

from sophia_mcore.pretrained.family import Family
from sophia_mcore.pretrained.internvl import chat, configs, tiling, weights
from sophia_mcore.pretrained.internvl.spec import TILES_AT_ONCE, VisionSpec, parse, picture, shown, tower_kept

FAMILY = Family(
    name="InternVL",
    model_types={"internvl": "hf", "internvl_chat": "hf-custom"},
    architectures={"InternVLForConditionalGeneration": "hf", "InternVLChatModel": "hf-custom"},
    language_sections=("text_config", "llm_config"),
    parse=parse,
    image_token=chat.IMAGE_CONTEXT,
    image_text=chat.image_text,
    reserved=(chat.IMAGE_CONTEXT, chat.IMAGE_START, chat.IMAGE_END),
    video_tokens=("<video>",),
    text_has_image_token=True,
    templates=chat.TEMPLATES,
    default_template="internvl2_5",
    image_processor=tiling.read,
    vision_type=VisionSpec,
    tables=weights.tables,
    symbols=weights.symbols,
    language_prefix="language_model.",
    spellings=weights.SPELLINGS,
    translate=configs.translate,
    hf_image_processor="transformers.models.got_ocr2.image_processing_got_ocr2:GotOcr2ImageProcessor",
    picture=picture,
    picture_name="tiles",
    rows_at_once=TILES_AT_ONCE,
    shown=shown,
    levels=lambda vision: 1,
    tokens_vary=False,
    tower_kept=tower_kept,
    unquantized=("*vision_tower*", "*multi_modal_projector*"),
)
